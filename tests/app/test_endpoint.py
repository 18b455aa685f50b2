"""The endpoint for programs, limits, and hostile requests."""

import http.client
import re
import struct
import threading
import urllib.parse
import zlib
from pathlib import Path

import numpy as np
import pytest
from page_server import Server
from PIL import Image

from harmony_diffusion.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(server):
    gradio_client = pytest.importorskip("gradio_client")
    return gradio_client.Client(server.url, verbose=False)


def files(pictures):
    from gradio_client import handle_file

    return handle_file(str(pictures / "composite.png")), handle_file(str(pictures / "mask.png"))


def ask(server, path, *, method="GET", body=None, headers=None):
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, body, {"Host": address.netloc, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def multipart(name, content):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_w5_a_program_gets_the_bytes_of_the_command_line(client, pictures, tmp_path):
    written = client.predict(*files(pictures), "color_grid", 0.7, api_name="/harmonize")
    call = [
        "image",
        pictures / "composite.png",
        pictures / "mask.png",
        "-o",
        tmp_path / "cli.png",
        "--strength",
        "0.7",
    ]
    assert main([str(part) for part in call]) == 0
    assert Path(written).read_bytes() == (tmp_path / "cli.png").read_bytes()


def test_w5_three_calls_at_once_are_served_one_after_another(client, pictures):
    jobs = [client.submit(*files(pictures), "reinhard", 1.0, api_name="/harmonize") for _ in range(3)]
    contents = {Path(job.result(timeout=120)).read_bytes() for job in jobs}
    assert len(contents) == 1


def test_w5_a_ninth_waiting_call_is_refused_in_a_sentence(client, pictures, tmp_path):
    refused = []
    for name in ("composite.png", "mask.png"):
        Image.open(pictures / name).resize((400, 300), Image.Resampling.NEAREST).save(tmp_path / name)

    def call():
        try:
            client.predict(*files(tmp_path), "idt", 1.0, api_name="/harmonize")
        except Exception as error:
            refused.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused and len(refused) < 16
    assert all("Queue is full" in text and "\n" not in text.strip() for text in refused)


def test_only_the_endpoint_is_offered_to_programs(client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/harmonize"]


@pytest.mark.parametrize(("model", "text"), [("hdnet", "not offered"), ("/etc", "not offered")])
def test_models_that_are_not_offered_are_refused(client, pictures, model, text):
    with pytest.raises(Exception, match=text):
        client.predict(*files(pictures), model, 1.0, api_name="/harmonize")


def test_w7_large_uploads_are_refused(server):
    body, headers = multipart("large.png", bytes(60_000_000))
    try:
        status, _, _ = ask(server, "/gradio_api/upload", method="POST", body=body, headers=headers)
    except (BrokenPipeError, ConnectionResetError):
        pytest.skip("the server hung up before its answer could be read")
    assert status == 413


def bomb():
    """A PNG of 40000 x 40000 pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [(bomb(), "40000x40000"), (b"just text", "is a text file")],
)
def test_w7_bombs_and_text_are_refused_in_a_sentence(client, pictures, tmp_path, content, text):
    from gradio_client import handle_file

    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(Exception, match=text) as caught:
        client.predict(
            handle_file(str(tmp_path / "bad.png")),
            files(pictures)[1],
            "color_grid",
            1.0,
            api_name="/harmonize",
        )
    said = str(caught.value)
    assert "bad.png" in said and "\n" not in said.strip()
    assert_names_no_folder(said)


def assert_names_no_folder(text):
    for place in (str(Path.home()), str(ROOT), str(Path.cwd()), "/tmp/"):
        assert place not in text, (place, text[:400])


def test_w7_foreign_host_is_not_answered(server):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        assert ask(server, "/", headers={"Host": host})[0] == 400
    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        str(ROOT / "harmony_diffusion/weights/color_grid/config.json"),
        str(ROOT / "README.md"),
        "README.md",
    ],
)
def test_w7_files_of_the_machine_are_not_served(server, path):
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy=file://"):
        status, body, _ = ask(server, route + urllib.parse.quote(path))
        assert status in (400, 403, 404, 405), (route, status)
        assert_names_no_folder(body.decode(errors="replace").replace(path, ""))


def test_w7_files_of_the_machine_are_no_input(client, server, pictures):
    composite = {"path": str(ROOT / "examples/composite.jpg"), "meta": {"_type": "gradio.FileData"}}
    body = b'{"data": [%s, %s, "color_grid", 1.0]}' % ((str(composite).replace("'", '"').encode(),) * 2)
    status, answer, _ = ask(
        server,
        "/gradio_api/call/harmonize",
        method="POST",
        body=body,
        headers={"Content-Type": "application/json"},
    )
    event = re.search(rb'"event_id":"(\w+)"', answer.replace(b" ", b""))
    said = (
        ask(server, f"/gradio_api/call/harmonize/{event[1].decode()}")[1].decode()
        if event
        else answer.decode()
    )
    assert "error" in said and "complete" not in said
    assert_names_no_folder(said)


def test_w7_headers_and_page_name_no_folder(server):
    status, body, headers = ask(server, "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
    assert_names_no_folder(body.decode())
    assert_names_no_folder(ask(server, "/config")[1].decode())


def test_names_of_uploads_lead_nowhere_else(server):
    body, headers = multipart("../../../x.png", b"x")
    status, answer, _ = ask(server, "/gradio_api/upload", method="POST", body=body, headers=headers)
    assert status == 200 and b".." not in answer


def test_interrupt_ends_it_with_0_and_removes_its_folder(pictures):
    pytest.importorskip("gradio")
    running = Server()
    body, headers = multipart("a.png", b"x")
    answer = ask(running, "/gradio_api/upload", method="POST", body=body, headers=headers)[1].decode()
    place = Path(re.search(r'"([^"]+)"', answer)[1])
    assert place.exists()
    status, errors = running.stop()
    assert status == 0 and not place.parents[1].exists() and not errors.strip()


def test_other_hosts_need_a_password(capsys):
    assert main(["app", "--host", "0.0.0.0", "--no-browser"]) == 2
    assert "--password" in capsys.readouterr().err


def test_small_mask_of_another_size_is_refused(client, pictures, tmp_path):
    from gradio_client import handle_file

    Image.fromarray(np.zeros((50, 60), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(Exception, match="60x50"):
        client.predict(
            files(pictures)[0],
            handle_file(str(tmp_path / "small.png")),
            "color_grid",
            1.0,
            api_name="/harmonize",
        )
