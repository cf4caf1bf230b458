"""greensock measured against its peers: a traffic generator in C, the servers, and the experiments.

native      compiles the two C files on first use
generator   runs the traffic generator and types its result
process     starts a peer pinned to a core; its CPU time and memory
peers/      the servers compared, a short file each
bench       the experiments: ``python -m loadtests.bench NAME``
"""
