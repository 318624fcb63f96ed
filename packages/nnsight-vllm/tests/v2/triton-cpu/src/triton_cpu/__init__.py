"""What Triton looks for in a backend: a compiler and a driver. Here neither is ever used."""
