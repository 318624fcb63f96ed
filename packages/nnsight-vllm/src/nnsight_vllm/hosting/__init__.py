"""A model that a server holds for many users: one engine, in a process of its own, which the processes of all jobs share.

A server forks a process for each job (`nnsight.plugin.Shareable`). There the job's block runs, with the model's tree and no
weights; what it traces goes to the engine as requests among those of all other jobs. The bodies of traces run in the engine.

    frames.py   what the two say to each other
    job.py      the engine, as the process of a job knows it
    loop.py     the engine's process: the requests of all jobs, step by step
    start.py    how that process is started
"""
