"Every annotation of the library is checked in tests, and in the processes that they start; COLANB_TYPECHECK=0 switches it off."
import os

os.environ.setdefault("COLANB_TYPECHECK", "1")   # read when colanb is first imported
