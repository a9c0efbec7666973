"""What setup.cfg cannot say: the packages are found, and models/ is one of them.

In the repository the named models lie in models/. Installed, they are the data of
``converters.models``, beside the code that reads them. All else is in setup.cfg.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["converters", "converters.*", "camrt", "camrt.*"]), "converters.models"],
    package_dir={"converters.models": "models"},
)
