"""Models on the machines of a Ray cluster.

The one idea: **a job runs on a node in the very process that it would run in here**, `server/host.py` with its walls and
limits; Ray only says where, and carries bytes. Between the server and that process stand two of our own:

    the server                          a node of the cluster
    RayHost (engine.py) <-> relay.py  ~~~>  Place (node.py) <-> host.py <-> the process of a job

The relay is the driver that Ray sees. It is a process of its own because Ray ends a driver that has lost its cluster, and
the server has to live on. It speaks with the server as a host does, so that the server's end is the one that it has for
hosts of this machine. `Place` is the actor: it holds a host as the server would.
"""
