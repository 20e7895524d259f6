"""Build the images: `python3.11 images/build.py [IMAGE ...]`, or `make images` for all of them.

Three layers, each kept until its own inputs change: the base (Debian, the user, the network's trust), an environment
(one lock of requirements/), and the image (code), which alone is built anew when code changes.

Python packages are fetched here, by pip with this machine's settings (PIP_INDEX_URL, PIP_CONFIG_FILE, proxies), and
handed to the build as wheels. Settings, all environment variables:

  VARIANT=cpu|cuda  which build of torch (default: cpu)
  BASE=IMAGE        stand on this image, NAME@sha256:DIGEST or a local one, instead of on Debian packages
  DEBIAN_MIRROR=URL where debootstrap finds those packages; a snapshot of a mirror pins each of them
  CA_BUNDLE=FILE    authorities to trust, in builds and in the images (default: SSL_CERT_FILE, REQUESTS_CA_BUNDLE)
  WHEELS=DIR        a folder of wheels handed in; OFFLINE=1: take nothing from elsewhere
  TAG=NAME          the tag that moves with every build, beside the git revision (default: latest)
  DOCKER_BUILDKIT   0 or 1, as the docker command understands it: both builders work
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import wheels
from command import Refusal, docker, identity, logged, need_engine, quiet, say

ROOT = Path(__file__).resolve().parent.parent
IMAGES, REQUIREMENTS, VAR = ROOT / "images", ROOT / "requirements", ROOT / "var"
# Whatever gets into an image; a change elsewhere does not make the revision dirty.
SOURCES = (
    "spira_train",
    "serve",
    "access",
    "collect",
    "config",
    "dags",
    "images",
    "requirements",
    "pyproject.toml",
    ".dockerignore",
)
JAVA = "openjdk-17-jre-headless"


class Image(NamedTuple):
    """An image: its folder, what it stands on (an environment, the base or another image), as which build argument."""

    folder: str
    on: str
    argument: str = "ENV"


TABLE = {
    "spira_train": Image("spira_train", "model"),
    "spira_torchserve": Image("torchserve", "spira_train", "TRAIN"),
    "spira_mlflow": Image("mlflow", "mlflow"),
    "spira_airflow": Image("airflow", "orchestration"),
    "spira_postgres": Image("postgres", "base", "BASE"),
    "spira_engine_proxy": Image("engine_proxy", "engine-proxy"),
    "spira_gateway": Image("gateway", "gateway"),
    "spira_prometheus": Image("prometheus", "base", "BASE"),
    "spira_app": Image("app", "app"),
    "spira_nats": Image("nats", "nats"),
    "spira_proxy": Image("proxy", "base", "BASE"),
}


def main() -> None:
    """Build what was named, print the table, write var/images.json."""
    parser = argparse.ArgumentParser(prog="images/build.py", description="Build the images.", epilog="See the file.")
    parser.add_argument("image", nargs="*", help=f"which (default: all): {', '.join(TABLE)}")
    wanted = parser.parse_args().image or [name for name, image in TABLE.items() if (IMAGES / image.folder).is_dir()]
    if unknown := [name for name in wanted if name not in TABLE]:
        parser.error(f"no such image: {', '.join(unknown)}; there are: {', '.join(TABLE)}")
    VAR.mkdir(exist_ok=True)
    with (VAR / "images.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would fetch and build everything twice
            build = Build()
            for name in wanted:
                build.image(name)
        except Refusal as refusal:
            sys.exit(f"images: {refusal}")
        build.write()
    build.table()


class Build:
    """One run: its settings, and what it has made so far."""

    def __init__(self) -> None:
        env = os.environ
        self.variant = env.get("VARIANT") or "cpu"
        if self.variant not in ("cpu", "cuda"):
            raise Refusal(f"VARIANT is {self.variant!r}; allowed: cpu, cuda")
        self.base_name = env.get("BASE") or "debian:bookworm"
        self.ca = _bundle()
        self.rows: dict[str, tuple[str, float, bool]] = {}  # tag: name, seconds, cached
        self.made: dict[str, str] = {}  # what images stand on: tag
        need_engine()
        self.version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        self.revision = _revision()

    def image(self, name: str) -> str:
        """Build one image with all it stands on; returns its tag."""
        if name in self.made:
            return self.made[name]
        image = TABLE[name]
        if image.on == "base":
            under = self.base()
        elif image.on in TABLE:
            under = self.image(image.on)
        else:
            under = self.environment(image.on)
        torch = "model" in (image.on, getattr(TABLE.get(image.on), "on", ""))
        about = {
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.revision": self.revision,
            "org.opencontainers.image.base.name": self.base_name,
        } | ({"spira.variant": self.variant} if torch else {})
        tag = f"{name}:{self.revision}" + ("-cuda" if torch and self.variant == "cuda" else "")
        tags = [tag, f"{name}:{os.environ.get('TAG') or 'latest'}"]
        dockerfile, args = IMAGES / image.folder / "Dockerfile", {image.argument: under}
        if name == "spira_train":
            args["REVISION"] = self.revision
        network = "host" if image.on == "base" else "none"  # what stands on the base alone takes Debian packages
        self._build(name, tags, dockerfile, ROOT, args, network=network, labels=about)
        self.made[name] = tag
        return tag

    def environment(self, name: str) -> str:
        """The environment of one lock, from wheels; returns its tag, which is the digest of what went in."""
        if name in self.made:
            return self.made[name]
        base, lock = self.base(), REQUIREMENTS / f"{name}.lock"
        variant = self.variant if name == "model" else "none"
        args = {"BASE": base, "VARIANT": variant, "PACKAGES": JAVA if name == "model" else ""}
        torch = (REQUIREMENTS / "torch.txt").read_text() if name == "model" else ""
        recipe = [lock.read_text(), torch, identity(base), str(sorted(args.items()))]
        recipe += [(IMAGES / "env" / file).read_text() for file in ("Dockerfile", "finish.py")]
        self.made[name] = tag = f"spira-env-{name}:{_digest(*recipe)}"
        if not self._stands(f"environment {name}", tag):
            context = VAR / "wheels" / name
            wheels.fetch(lock, context)
            if name == "model":
                wheels.fetch_torch(REQUIREMENTS / "torch.txt", lock, context, self.variant)
            shutil.copy(IMAGES / "env/finish.py", context)
            self._build(f"environment {name}", [tag], IMAGES / "env/Dockerfile", context, args, network="host")
            # the stage that held the wheels: of no use once its environment has a name
            docker("image", "prune", "--force", "--filter", "label=spira.stage=venv")
        return tag

    def base(self) -> str:
        """What all stand on; returns its tag."""
        if "base" in self.made:
            return self.made["base"]
        under = _given(self.base_name) if os.environ.get("BASE") else self._debian()
        recipe = [(IMAGES / "base" / file).read_text() for file in ("Dockerfile", "trust.py")]
        self.made["base"] = tag = f"spira-base:{_digest(identity(under) or under, self.ca, *recipe)}"
        if not self._stands("base", tag):
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(IMAGES / "base/trust.py", folder)
                Path(folder, "ca.pem").write_text(self.ca)
                self._build("base", [tag], IMAGES / "base/Dockerfile", Path(folder), {"FROM": under})
        return tag

    def _debian(self) -> str:
        recipe = IMAGES / "base/make.sh"
        tag = f"spira-debian:{_digest(recipe.read_text(), os.environ.get('DEBIAN_MIRROR', ''))}"
        if self._stands("debian", tag):
            return tag
        if not shutil.which("debootstrap"):
            raise Refusal(
                "debootstrap: not installed, and it makes the base image: `apt-get install debootstrap`, "
                "or name an image to stand on: BASE=python:3.11-slim-bookworm@sha256:..."
            )
        if os.geteuid():
            raise Refusal("debootstrap: needs root to make the base image: run as root once, or name one with BASE=...")
        start = say("debian: making the root file system")
        with tempfile.TemporaryDirectory(dir=VAR) as folder:
            tar, ca = Path(folder, "root.tar"), Path(folder, "ca.pem")
            ca.write_text(self.ca)
            env = os.environ | {"CA_BUNDLE": str(ca) if self.ca else ""}
            logged("debian", ["sh", str(recipe), str(tar)], _log("debian"), env)
            docker("import", str(tar), tag)
        self.rows[tag] = ("debian", time.monotonic() - start, False)
        return tag

    def _build(
        self,
        name: str,
        tags: list[str],
        dockerfile: Path,
        context: Path,
        args: dict[str, str],
        *,
        network: str = "none",
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        start, before = say(f"{name}: building"), identity(tags[-1])
        # Proxies are arguments that every build knows and that no image keeps.
        for proxy in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
            if network != "none" and os.environ.get(proxy):
                args = args | {proxy: os.environ[proxy]}
        command = ["docker", "build", "--force-rm", "--network", network, "-f", str(dockerfile)]
        command += [word for key, value in args.items() for word in ("--build-arg", f"{key}={value}")]
        command += [word for tag in tags for word in ("-t", tag)]
        command += [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        logged(name, [*command, str(context)], _log(name))
        self.rows[tags[0]] = (name, time.monotonic() - start, before == identity(tags[0]))

    def _stands(self, name: str, tag: str) -> bool:
        if stands := bool(identity(tag)):
            self.rows[tag] = (name, 0.0, True)
        return stands

    def write(self) -> None:
        """var/images.json: name to image id, for whoever must know exactly what was built."""
        file = VAR / "images.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        known |= {name: identity(self.made[name]) for name in TABLE if name in self.made}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(known, indent=1) + "\n")
        partial.replace(file)

    def table(self) -> None:
        """What there is, how large, and how long it took."""
        print(f"\n{'image':<28}{'size':>9}{'seconds':>10}")
        for tag, (name, seconds, cached) in self.rows.items():
            size = int(docker("image", "inspect", "-f", "{{.Size}}", tag))
            print(f"{name:<28}{size / 1e6:>6.0f} MB{seconds:>10.1f}  {'cached' if cached else 'built'}  {tag}")


def _given(image: str) -> str:
    if "@sha256:" not in image and not identity(image):
        raise Refusal(f"BASE={image}: neither a local image nor pinned; write NAME@sha256:DIGEST")
    return image


def _bundle() -> str:
    names = ("CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    chosen = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not chosen:
        return ""
    try:
        return Path(chosen).read_text(errors="replace")
    except OSError as error:
        raise Refusal(f"CA_BUNDLE: {chosen} cannot be read ({error.strerror}); name a PEM file") from None


def _revision() -> str:
    def git(*words: str) -> str:
        # `make images` as root in somebody else's checkout is usual
        done = quiet(["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words])
        return done.stdout.strip() if done.returncode == 0 else ""

    known = (ROOT / ".git").exists() and shutil.which("git")
    commit = git("rev-parse", "--short=12", "HEAD") if known else ""
    dirty = "-dirty" if commit and git("status", "--porcelain", "--", *SOURCES) else ""
    return f"{commit}{dirty}" or "unknown"


def _log(name: str) -> Path:
    return VAR / "log" / f"image-{name.replace(' ', '-')}.log"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
