"""Ports of the embedded stack."""

import socket

import pytest

from local.ports import DEFAULTS, PortTaken, choose_ports, is_free


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_of_ones_own_for_everybody():
    ports = choose_ports({})
    assert set(ports) == set(DEFAULTS)
    assert len(set(ports.values())) == len(ports)


def test_a_default_that_is_taken_gives_way(taken, monkeypatch):
    monkeypatch.setitem(DEFAULTS, "AIRFLOW_PORT", taken)
    port = choose_ports({})["AIRFLOW_PORT"]
    assert port != taken
    assert is_free(port)


def test_a_wish_that_is_taken_is_refused(taken):
    with pytest.raises(PortTaken, match=f"MLFLOW_PORT={taken}: that port is in use; choose another, or unset"):
        choose_ports({"MLFLOW_PORT": str(taken)})


def test_a_wish_displaces_a_default():
    wish = DEFAULTS["AIRFLOW_PORT"]
    if not is_free(wish):
        pytest.skip(f"port {wish} is in use on this machine")
    ports = choose_ports({"MLFLOW_PORT": str(wish)})
    assert ports["MLFLOW_PORT"] == wish
    assert ports["AIRFLOW_PORT"] != wish


@pytest.mark.parametrize("wish", ["80", "x", "70000", "-1"])
def test_not_a_port(wish):
    with pytest.raises(PortTaken, match=f"AIRFLOW_PORT={wish}: not a port"):
        choose_ports({"AIRFLOW_PORT": wish})


def test_one_port_for_two():
    with pytest.raises(PortTaken, match="give each service a port of its own"):
        choose_ports({"AIRFLOW_PORT": "23456", "MLFLOW_PORT": "23456"})
