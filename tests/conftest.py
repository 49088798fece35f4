"Every annotation of the library is checked in tests, and in the processes that they start; COLANB_TYPECHECK=0 switches it off."
import os
import signal
import threading

os.environ.setdefault("COLANB_TYPECHECK", "1")   # read when colanb is first imported


def pytest_configure():
    "A job in the background starts with Ctrl-C ignored, and so would the trainings that tests stop with it."
    if threading.current_thread() is threading.main_thread(): signal.signal(signal.SIGINT, signal.default_int_handler)
