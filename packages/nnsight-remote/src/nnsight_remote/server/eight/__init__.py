"""Clients of nnsight 0.8 at our server: they speak as they speak to NDIF, and run what everybody else runs.

The one idea: their jobs are jobs like any other (queue, limits, store, confinement), whose request and result are written in
their format. What they send is a pickle, which is a program, so it is read only where blocks run. Read in this order:

    envelope             how such a request lies in the store: what was asked besides, and the bytes as they came
    form                 the multipart form that it comes in
    named                which model of ours one of their keys means, and what they are told is there
    told                 what they are told of a job
    sockets              the sockets on which they are told
    routes               the routes, put together of these
                         -- from here on, where blocks run --
    theirs               what their objects become here
    functions            functions and modules that came along
    reader               from the bytes to a request that can be run
    mismatch             what their language has and ours does not, found before anything runs
    results              what was saved, as they read it

relies on: the protocol, and the objects in a payload, of nnsight 0.8.1
"""
