"""The speed comparison: the same work by this program and by its peers, on one machine, in one run (`make bench`).

`workload.py` says what a workload is, the modules named in `workloads.py` are one each and hold our side of it; the
peers' sides are scripts of their own under `benchmarks/peers`, which run in environments of their own.
"""
