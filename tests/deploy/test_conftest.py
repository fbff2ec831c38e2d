"""What the other tests rely on."""

from conftest import latest


def test_the_latest_versions_are_different_ones():
    import kubernetes_validate

    assert latest(["1.35.0", "1.35.0", "1.36.0", "1.36.0", "1.37.0", "1.37.0"], 3) == ["1.35.0", "1.36.0", "1.37.0"]
    assert len({version.rsplit(".", 1)[0] for version in latest(kubernetes_validate.utils.all_versions(), 3)}) == 3
