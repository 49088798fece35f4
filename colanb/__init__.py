__version__ = "0.1.0"

import os

if os.environ.get("COLANB_TYPECHECK") == "1":   # test runs
    from .typecheck import install
    install()
