"""The images that critest 1.34 pulls (pkg/validate/consts.go), made here: each holds what the specs ask of it."""

import pathlib
import platform
import subprocess
import tempfile

from stack import images
from stack.images import Entry, Image

GUEST = pathlib.Path(__file__).resolve().parent.parent / "guest"
GO_ARCHITECTURE = images.ARCHITECTURES.get(platform.machine(), platform.machine())

E2E = "registry.k8s.io/e2e-test-images/"
STAGING = "gcr.io/k8s-staging-cri-tools/"
USERS = {"user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:1004", "user-username-group": "www-data:1004"}

# What a busybox of Debian's lacks.
SCRIPTS = {
    "pgrep": '#!/bin/sh\ncd /proc\nfor pid in [0-9]*; do\n  read -r name 2>/dev/null < $pid/comm && [ "$name" = "$1" ] && echo $pid && found=1\ndone\n[ -n "$found" ]\n',
    "ipcs": "#!/bin/sh\nexec cat /proc/sysvipc/shm\n",
}


def _compiled(name):
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, name)
        subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, GUEST / f"{name}.c"], check=True)
        return program.read_bytes()


def _with_libraries(name, program):
    """Entries of a dynamic program called `name`, its loader and its libraries, all where the loader looks for them."""
    shown = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = sorted({word for word in shown.split() if word.startswith("/")})
    folders = sorted({f"{folder}/".lstrip("/") for library in libraries for folder in pathlib.Path(library).parents if folder.name})
    return [*[Entry(folder, mode=0o755) for folder in folders],
            *[Entry(library.lstrip("/"), pathlib.Path(library).read_bytes(), 0o755) for library in libraries],
            Entry(name, pathlib.Path(program).read_bytes(), 0o755)]


def _base():
    """Busybox, an applet being a file of its own, and a shell that runs no applet itself: a spec masks /bin/ls, and wants
    the message that such a shell has for it."""
    program = images.busybox_program()
    applets = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    names = sorted(set(applets) - {"busybox", "sh", "ash", *SCRIPTS})
    folders = ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "run/", "sbin/", "sys/", "usr/", "usr/bin/", "usr/sbin/", "var/", "var/run/"]
    return images.layer([
        *[Entry(folder, mode=0o755) for folder in folders],
        Entry("tmp/", mode=0o1777),
        Entry("bin/busybox", pathlib.Path(program).read_bytes(), 0o755),
        *[Entry(f"bin/{name}", same_as="bin/busybox", mode=0o755) for name in names],
        *_with_libraries("bin/sh", images.busybox_program("dynamic")),
        *[Entry(f"bin/{name}", text.encode(), 0o755) for name, text in SCRIPTS.items()],
        Entry("etc/passwd", (images.PASSWD + "www-data:x:33:33:www-data:/var/www:/bin/false\n").encode()),
        Entry("etc/group", (images.GROUP + "www-data:x:33:\n").encode()),
    ])


def _of_users():
    """Where uid 1000 is in a group of the image's own."""
    return images.layer([
        Entry("etc/passwd", (images.PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n").encode()),
        Entry("etc/group", (images.GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n").encode()),
    ])


def all_images():
    base = _base()
    webserver, privileges = _compiled("webserver"), _compiled("nonewprivs")
    nginx = images.layer([Entry("usr/sbin/nginx", webserver, 0o755)])
    httpd = images.layer([Entry("usr/sbin/httpd", webserver, 0o755)])
    nonewprivs = images.layer([Entry("nnp", privileges, 0o4755)])

    def serving(name, layer, title, port, pid_file=""):
        program = f"/usr/sbin/{title.split(':')[0]}"
        return Image(name, [base, layer], entrypoint=(program,), command=(title, str(port), pid_file))

    made = [
        images.pause("registry.k8s.io/pause:3.10", [base]),
        Image(E2E + "busybox:1.29-2", [base]),
        Image(E2E + "nonewprivs:1.3", [base, nonewprivs], entrypoint=("/nnp",), command=()),
        serving(E2E + "nginx:1.14-2", nginx, "nginx: master process", 80, "/var/run/nginx.pid"),
        serving(E2E + "httpd:2.4.39-4", httpd, "httpd", 80),
        serving(STAGING + f"hostnet-nginx-{GO_ARCHITECTURE}:latest", nginx, "nginx: master process", 12003, "/var/run/nginx.pid"),
        Image(STAGING + "test-image-predefined-group:latest", [base, _of_users()], user="1000"),
        *[Image(f"{STAGING}test-image-{name}:latest", [base], user=user) for name, user in USERS.items()],
    ]
    # Images that are told from each other by what is in them.
    distinct = {"latest:latest": "latest", "tag:test": "tag test", "tag:all": "tag all", "digest:latest": "digest",
                **{f"{n}:latest": str(n) for n in (1, 2, 3)}, **{f"tags:{n}": "tags" for n in (1, 2, 3)}}
    made += [Image(f"{STAGING}test-image-{name}", [images.layer([Entry("content", content.encode())])], command=("/content",))
             for name, content in distinct.items()]
    return made
