"""What is installed: the packages that go into a wheel, and the plugins that twistd finds."""

import configparser
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from tests.service.scene import python

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = {
    "broker": "broker.service.mediator",
    "broker-resolver": "broker.service.resolver",
    "broker-terminal": "broker.service.terminal",
}
PRINT_PLUGINS = """\
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

for plugin in getPlugins(IServiceMaker):
    if plugin.module.startswith("broker."):
        assert callable(plugin.makeService)
        plugin.options()
        print(plugin.tapname, plugin.module)
"""


class PluginTests:
    """Twisted's commands offer the three roles."""

    def test_twisted_stays_a_namespace(self) -> None:
        """No ``__init__.py`` in our ``twisted``: it would hide Twisted, or our plugins."""
        assert sorted(ROOT.glob("twisted/**/__init__.py*")) == []

    def test_found_in_the_checkout(self) -> None:
        """Each role is found by its name; its module has what twistd will ask for."""
        lines = python("-c", PRINT_PLUGINS, cwd=ROOT).stdout.splitlines()
        assert dict(line.split() for line in lines) == PLUGINS

    def test_listed_by_the_command(self, tmp_path: Path) -> None:
        """``twist --help`` lists the roles, also when it is called outside the checkout."""
        words = python("-m", "twisted", "--help", cwd=tmp_path).stdout.split()
        assert set(PLUGINS) <= set(words)


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
