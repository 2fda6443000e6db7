"""softxp's conformance suite: every backend and dtype against a high-precision truth, in ulp.

    python -m softxp_conformance --target torch

`targets` says which libraries there are and how to speak to them, `cases` what is asked of each function, `inputs` which
rows it is asked of, `oracle` what the truth is, `ulp` how far an answer is from it. The tests are in the test_ files.
"""
