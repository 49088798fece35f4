"""Package metadata from settings.ini, the one place that holds it."""

import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
readme = here / "README.md"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    packages=find_packages(include=["colanb", "colanb.*"]),
    package_data={"colanb": ["models/*/*"]},   # trained models that come with it
    python_requires=f">={settings['min_python']}",
    install_requires=shlex.split(settings["requirements"]),
    extras_require={name: shlex.split(settings[f"{name}_requirements"]) for name in ("dev", "harness", "site")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
