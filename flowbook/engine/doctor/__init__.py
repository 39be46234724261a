"""`flowbook doctor` and `%flow doctor`: does all that flowbook rests on hold here? What is the same for both.

    core.py      a finding, a check, and how checks are made: one after the other, each with a deadline
    machine.py   versions of this machine, settings
    storage.py   the store: is it there, can it be written, does it keep create-if-absent
    cluster.py   the API server, rights, the namespace, what pods need
    rights.py    which rights flowbook needs, and the Role that lacks
    nodes.py     which nodes a pod could be on
    trial.py     one small pod that does what a step's pod does
    elsewhere.py the checks of the cluster as a program, so that a kernel need not load what speaks to one

What is of a kernel or of the command line (the notebook, the engine, how findings are shown) is theirs: kernel/doctor.py, cli/doctor.py.
"""
