"Every annotation of the library is checked in tests, and in the processes that they start; COLANB_TYPECHECK=0 switches it off."
import os
import signal
import threading

os.environ.setdefault("COLANB_TYPECHECK", "1")   # read when colanb is first imported


def pytest_configure():
    "A job in the background starts with Ctrl-C ignored, and so would the trainings that tests stop with it."
    if threading.current_thread() is threading.main_thread(): signal.signal(signal.SIGINT, signal.default_int_handler)


# files of minutes, the longest first: workers take one file after another, and the last of all should be short
LONG = ("test_gpu_kit", "test_parallel", "test_mutation_sample", "test_stopping", "test_commands", "test_options", "test_bad_input", "test_kills")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
