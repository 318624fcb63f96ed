"""`nnsight serve MODEL`: one machine that runs the blocks of many users, without a cluster, a broker or a database server.

This process never decodes what a user sends: it keeps bytes, decides whose turn it is, and hands files to the processes
that hold the models. Read in this order:

    limits, jobs           what a user may do; what a job is (leaves)
    queue, store, keys     whose turn it is; what survives a restart; who is who
    engine                 the two protocols behind which models run: `Engine` and `Host`
    processes, channel     hosts as processes of this machine, and what is said between them and the server
    host, worker, confine  inside such a process: hold a model, run one block, with least power
    dispatch, events       the life of a job, and everybody who follows it
    api, web, ...          HTTP, socket.io, the pages, the numbers
    command                `nnsight serve`

The page *The server* of the documentation says what happens when each part dies.
"""
