"Change one thing in a module and see whether a check notices: `python -m tests.mutation --help`."
