"""What is installed: the packages that go into a wheel, and the plugins that twistd finds."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = {
    "broker": "broker.service.mediator",
    "broker-resolver": "broker.service.resolver",
    "broker-terminal": "broker.service.terminal",
}
LIST_PLUGINS = """\
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

for plugin in getPlugins(IServiceMaker):
    print(plugin.tapname, plugin.module)
"""
LOAD_PLUGINS = """\
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

for plugin in getPlugins(IServiceMaker):
    if plugin.module.startswith("broker."):
        assert callable(plugin.makeService)
        plugin.options()
        print(plugin.tapname)
"""


def python(*arguments: str, cwd: Path) -> str:
    """Run this interpreter afresh and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class PluginTests:
    """Twisted's commands offer the three roles."""

    def test_twisted_stays_a_namespace(self) -> None:
        """No ``__init__.py`` in our ``twisted``: it would hide Twisted, or our plugins."""
        assert sorted(ROOT.glob("twisted/**/__init__.py*")) == []

    def test_found_in_the_checkout(self) -> None:
        """In the checkout, each role is found under its name, with the module that makes it."""
        found = dict(line.split() for line in python("-c", LIST_PLUGINS, cwd=ROOT).splitlines())
        assert {name: found.get(name) for name in PLUGINS} == PLUGINS

    def test_listed_by_the_command(self, tmp_path: Path) -> None:
        """``twist --help`` lists the roles, also when it is called outside the checkout."""
        words = python("-m", "twisted", "--help", cwd=tmp_path).split()
        assert set(PLUGINS) <= set(words)

    def test_modules_make_services(self) -> None:
        """Each role's module has the options and the ``makeService`` that twistd will ask for."""
        assert set(python("-c", LOAD_PLUGINS, cwd=ROOT).split()) == set(PLUGINS)


class PackagesTests:
    """The search that ``setup.cfg`` prescribes finds what must be installed and nothing else."""

    @pytest.fixture
    def packages(self) -> set[str]:
        """The packages that setuptools would put into a wheel."""
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        assert config["options"]["packages"] == "find_namespace:"
        find = config["options.packages.find"]
        return set(
            find_namespace_packages(
                str(ROOT), include=find["include"].split(), exclude=find["exclude"].split()
            )
        )

    def test_every_package_of_broker(self, packages: set[str]) -> None:
        """Every directory below ``broker`` that holds a module or data is found."""
        files = [*ROOT.glob("broker/**/*.py"), *ROOT.glob("broker/**/*.sql")]
        assert {".".join(file.relative_to(ROOT).parent.parts) for file in files} <= packages

    def test_the_plugins(self, packages: set[str]) -> None:
        """The directory of the plugins is found, though it has no ``__init__.py``."""
        assert "twisted.plugins" in packages

    def test_nothing_else(self, packages: set[str]) -> None:
        """Neither the tests nor any other directory of the checkout is found."""
        assert {name.split(".")[0] for name in packages} == {"broker", "twisted"}
        assert not [name for name in packages if "__pycache__" in name]
        assert not [name for name in packages if "tests" in name.split(".")]

    def test_the_typing_mark(self) -> None:
        """``py.typed`` is there, and is data of the package."""
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        assert (ROOT / "broker" / "py.typed").exists()
        assert {"py.typed", "*.sql"} <= set(config["options.package_data"]["*"].split())
