"""A real Chromium without a window: Debian's packages, which are installed where that is possible."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")


def why_not() -> str | None:
    """Return why there is no browser; None if there is one, which is installed first where that is possible."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "there is no Chromium, and it can only be installed by root with apt-get: " + " ".join(PACKAGES)
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", "-q", *command], capture_output=True, text=True, env=environment)
        if done.returncode:
            return f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}"
    return None


def start(folder: Path) -> webdriver.Chrome:
    """Start a browser whose files are in a folder."""
    options = Options()
    flags = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1500")
    for flag in (*flags, f"user-data-dir={folder}", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def requested(browser: webdriver.Chrome) -> set[str]:
    """Return the hosts that the pages have asked for something since the last call."""
    hosts = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme in ("http", "https", "ws", "wss"):
                hosts.add(url.netloc)
    return hosts
