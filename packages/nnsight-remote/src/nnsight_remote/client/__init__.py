"""The client: a block is sent to a server, and what it saved comes back.

Read in this order:

    errors, address, keys        what can go wrong; which server, and the key for it
    patience, connection         when to try again; one HTTP client for each server
    protocol                     what a server is asked for: `Jobs` and `Facts`
    serve_jobs, serve_facts      that, for a server started with `nnsight serve`; `download` fetches a result
    handshake                    finding out what a server speaks, and comparing versions before anything is uploaded
    display                      what a user sees meanwhile: in a terminal, in a notebook, in a file, or nothing
    job, backend                 the handle of a job; what `remote=True` stands for
    ndif, tables, command        `nnsight.ndif`, and `nnsight login`, `nnsight whoami`
"""
