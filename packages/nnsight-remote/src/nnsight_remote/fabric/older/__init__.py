"""What NDIF's servers spoke before: to clients of nnsight up to 0.7, over HTTP and socket.io.

What it shares with what is spoken now is above; here is what differs. Read in this order:

    stand_ins            the classes of nnsight 0.7, by name, and what their objects hold
    naming, pickler      how they are named in a payload: as that server admits it
    tree, padding        the model there; positions of rows of different lengths, which 0.7 does not count
    text, payload        the text of a block as a function; a block as bytes
    events               socket.io, on which it tells what happens to a job
    jobs, facts          the conversation
"""
