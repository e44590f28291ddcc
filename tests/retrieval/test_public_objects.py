import importlib
import logging
import sys
import textwrap
import warnings

import pytest

from retrieval.public_objects import PublicObject, public_objects

FILES = {
    "fakelib/__init__.py": '''
        from fakelib._core import area, Shape, secret, volume
        from fakelib._core import area as surface
        from fakelib import _core
        __all__ = ["area", "surface", "Shape", "constant", "undocumented", "helper"]
        constant = 3
        not_listed = volume
        def undocumented(): pass
        def helper():
            """A helper that is listed."""
        def __getattr__(name):
            import warnings
            warnings.warn("old name", FutureWarning)
            if name == "old":
                return area
            raise AttributeError(name)
    ''',
    "fakelib/_core.py": '''
        """Private."""
        def area(r):
            """Area of a circle."""
        def volume(r):
            """Volume of a ball."""
        def secret():
            """Not public."""
        class Shape:
            """A shape."""
        class Copied(Shape):
            __doc__ = Shape.__doc__
        class Silent(Shape):
            pass
    ''',
    "fakelib/geometry/__init__.py": '''
        from fakelib.geometry.solid import Cube
        from fakelib._core import volume, Copied, Silent
        from collections import OrderedDict
        from math import sqrt
        def local():
            """Defined here."""
        class Operation:
            """The class of operations."""
            def __init__(self, doc=None):
                if doc: self.__doc__ = doc
            def __call__(self): pass
        add = Operation("Adds two shapes.")
        plain = Operation()
        number = 7
    ''',
    "fakelib/geometry/solid.py": '''
        class Cube:
            """A cube."""
        def longer_name():
            """Two names of one length, below."""
        shorter = short_b = short_a = longer_name
    ''',
    "fakelib/_private/__init__.py": "",
    "fakelib/_private/deep.py": '''
        def hidden():
            """Never seen."""
    ''',
    "fakelib/tests/__init__.py": "raise RuntimeError('tests must not be imported')",
    "fakelib/conftest.py": "raise RuntimeError('conftest must not be imported')",
    "fakelib/needs_gpu.py": "raise ImportError('no GPU')",
    "fakelib/exits.py": "raise SystemExit(3)",
    "fakelib/noisy.py": '''
        import logging, warnings
        warnings.warn("noise", UserWarning)
        logging.getLogger("fakelib").warning("noise")
        def quiet():
            """Quiet function."""
    ''',
    "otherlib/__init__.py": '''
        from fakelib import area
        from fakelib.geometry import add
        __all__ = ["area", "add", "own"]
        def own():
            """Owned by otherlib."""
    ''',
}


@pytest.fixture
def fake_packages(tmp_path, monkeypatch):
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("fakelib", "otherlib")]:
        del sys.modules[name]


def test_what_is_public_and_under_which_name(fake_packages):
    assert public_objects(["fakelib"]) == [
        PublicObject("fakelib.Shape", (), "A shape."),
        PublicObject("fakelib.area", ("fakelib.surface",), "Area of a circle."),
        PublicObject("fakelib.geometry.Cube", ("fakelib.geometry.solid.Cube",), "A cube."),
        PublicObject("fakelib.geometry.Operation", (), "The class of operations."),
        PublicObject("fakelib.geometry.add", (), "Adds two shapes."),
        PublicObject("fakelib.geometry.local", (), "Defined here."),
        PublicObject(
            "fakelib.geometry.solid.short_a",
            (
                "fakelib.geometry.solid.short_b",
                "fakelib.geometry.solid.shorter",
                "fakelib.geometry.solid.longer_name",
            ),
            "Two names of one length, below.",
        ),
        PublicObject("fakelib.helper", (), "A helper that is listed."),
        PublicObject("fakelib.noisy.quiet", (), "Quiet function."),
    ]


def test_an_object_belongs_to_the_package_that_defines_it(fake_packages):
    names = [entry.name for entry in public_objects(["otherlib", "fakelib"])]
    assert "otherlib.own" in names
    assert "fakelib.area" in names
    assert not {"otherlib.area", "otherlib.add"} & set(names)
    assert public_objects(["fakelib", "otherlib"]) == public_objects(["otherlib", "fakelib"])


def test_imports_before_do_not_matter(fake_packages):
    first = public_objects(["fakelib"])
    for name in [name for name in sys.modules if name.startswith("fakelib")]:
        del sys.modules[name]
    importlib.import_module("fakelib.geometry.solid")
    importlib.import_module("fakelib._private.deep")
    importlib.import_module("otherlib")
    assert public_objects(["fakelib"]) == first


def test_nothing_is_heard_and_logging_works_afterwards(fake_packages, capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        public_objects(["fakelib"])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    logging.getLogger("after").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_logging_works_after_a_failure():
    with pytest.raises(ModuleNotFoundError):
        public_objects(["no_such_package_at_all"])
    assert logging.root.manager.disable == logging.NOTSET


def test_numpy_by_hand():
    entries = {entry.name: entry for entry in public_objects(["numpy"])}
    aliases = {alias: entry.name for entry in entries.values() for alias in entry.aliases}
    assert entries["numpy.abs"].aliases[0] == "numpy.absolute"  # one ufunc under two names
    assert aliases["numpy.ma.core.exp"] == "numpy.ma.exp"
    assert {"numpy.linalg.norm", "numpy.fft.fft", "numpy.random.normal", "numpy.ndarray", "numpy.ma.exp"} <= set(
        entries
    )
    # C types of the platform, private and build modules, modules, constants.
    assert not {"numpy.int64", "numpy.long", "numpy.float128", "numpy.longdouble", "numpy.pi"} & set(entries)
    every = {*entries, *aliases}
    assert not any(part.startswith("_") for name in every for part in name.split("."))
    assert not any(name.startswith(("numpy.distutils", "numpy.core.", "numpy.f2py.")) for name in every)
    assert not any("on this platform" in entry.doc for entry in entries.values())
