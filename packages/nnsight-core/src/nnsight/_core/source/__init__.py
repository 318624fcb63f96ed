"""A forward as a row of operations: every call in its body, named, and each of them handed to somebody else to make.

This package turns functions into functions and knows nothing of runs: who receives the calls, and what they do with
them, is `taps.py`'s and `served.py`'s business.

    operations   one call in a body: its name, its place, and the tree that hands it over
    locate       the text that a running function was made from, checked against its code
    rewrite      an equal function whose calls go through a row of callables
    unwrap       the function under decorators, and the same decorators around another function
    printing     the listing of a function's operations, and the lines around one of them
"""
