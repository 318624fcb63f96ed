"""NDIF, the National Deep Inference Fabric: its protocol, as version 0.1.0 of the server speaks it to clients of nnsight 0.8.

Read in this order:

    stand_ins            the classes of nnsight 0.8, by name; the only file that knows how their objects are built
    model, tree          what the server is told of a model: its key, what it has of it, the tree of envoys
    language, text       what of our language 0.8 does not have; the text of a block
    operations           names of operations that mean something else over there
    functions, pickler   functions by their text; what stands for what in a payload
    payload              a block as bytes
    response             what the server says of a job
    objects, results     the values that come back, read without running anything of theirs
    subscription         the socket on which it tells what happens to a job
    jobs, facts          the conversation, as `client/protocol.py` wants it
    older/               what servers of nnsight 0.7 speak, where it differs
"""
