"""softxp's conformance suite: every backend and dtype against a high-precision truth, in ulp.

    python -m softxp_conformance --target torch

`targets` says which libraries there are and how to speak to them, `implementations` whose functions are judged, `cases`
what is asked of each function, `inputs` which rows it is asked of; `subject` puts the question. `oracle` says what the
truth is, `ulp` how far an answer is from it, `budgets` how far it may be, `compare` judges, and `rows` and `report` write it
down. `compositions` has the functions in which a softmax stands between other steps, with their truth and bound. The tests
are in the test_ files.
"""
