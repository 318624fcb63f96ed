"""`nnsight serve MODEL`: one machine that runs the blocks of many users, without a cluster, a broker or a database server.

This process never decodes what a user sends: it keeps bytes, decides whose turn it is, and hands files to the processes
that hold the models. Read in this order:

    limits, jobs           what a user may do; what a job is (leaves)
    queue, store, keys     whose turn it is; what survives a restart; who is who
    engine                 the two protocols behind which models run: `Engine` and `Host`
    processes, channel     hosts as processes of this machine, and what is said between them and the server
    host                   inside such a process: hold a model, and run its jobs
    forking, resident      each in a process of its own, or all in this one
    worker, confine        run one block, with least power
    models, dispatch       which models are loaded, and the life of a job; `events`: everybody who follows it
    admission, intake      whether a request is taken in, and how
    api, live, pages, ...  HTTP, socket.io, the pages, the numbers
    app, command           all of them put together, and `nnsight serve`

The page *The server* of the documentation says what happens when each part dies.
"""
