"""Programs that attack: asserted by what becomes of a canary folder, process and port, and by what is left running."""
from __future__ import annotations

import os
import sys

import pytest
from canaries import Canaries, until

from codegen_fast.execution import Executor, Limits
from codegen_fast.execution.worker import SandboxRefused, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces, Landlock and seccomp are Linux's")

LIMITS = Limits(seconds=15, memory_bytes=512 << 20, processes=16, output_bytes=100_000)


@pytest.fixture(scope="module", params=["namespaces", "restricted"])
def level(request):
    try:
        Worker(request.param, ()).close()
    except SandboxRefused as error:
        pytest.skip(f"{request.param}: {error}")
    return request.param


@pytest.fixture
def canaries(tmp_path):
    made = Canaries(tmp_path)
    yield made
    made.close()


@pytest.fixture
def attack(level, canaries):
    """attack(source) runs it, and then asserts that no harm was done, and that the sandbox still runs programs."""
    with Executor(1, LIMITS, isolation=level) as executor:

        def run(source, **knobs):
            outcome = executor.run(canaries.mark + source, **knobs)
            assert canaries.left() == []
            canaries.check()
            assert executor.run("print('well')").stdout == "well\n"
            return outcome

        yield run
    assert canaries.left() == []


def attempts(*lines, **names):
    """A program that tries every line by itself and prints those that raised nothing."""
    assigned = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return (f"import ctypes, os, shutil, signal, socket, subprocess, sys, time\n{assigned}"
            + "".join(f"try:\n  {line}\n  print({line!r})\nexcept Exception:\n  pass\n" for line in lines))  # fmt: skip


def test_a_program_of_the_sandbox_can_be_found(level, canaries):
    """What the others rely on: its processes are seen from outside while it runs, and are not another's."""
    with Executor(1, LIMITS, isolation=level) as executor:
        future = executor.submit(canaries.mark + "import time; time.sleep(60)", seconds=60)
        assert until(canaries.left)
        owners = {os.stat(f"/proc/{pid}").st_uid for pid in canaries.left()}
        if level == "namespaces":
            assert 0 not in owners
    assert future.result().detail == "killed because the executor was closed"
    assert canaries.left() == []


def test_files_can_be_neither_changed_nor_read(attack, canaries):
    outcome = attack(attempts(
        "shutil.rmtree(folder)", "os.unlink(file)", "open(file, 'w')", "open(file, 'a').write('x')",
        "os.truncate(file, 0)", "os.rename(file, file + '2')", "os.rename(folder, 'mine')", "os.chmod(file, 0)",
        "os.chmod(folder, 0)", "os.chown(file, os.getuid(), os.getgid())", "os.utime(file, (0, 0))",
        "os.setxattr(file, 'user.x', b'x')", "os.mkdir(folder + '/new')", "os.mkfifo(folder + '/pipe')",
        "os.link(file, 'linked') or open('linked', 'w')", "os.symlink(file, 'sym') or open('sym', 'w')",
        "os.symlink(folder, 'dir') or shutil.rmtree('dir/below')", "os.unlink(os.path.relpath(file))",
        "os.chroot(folder)", "open(secret).read()", "os.listdir(folder)",
        "subprocess.run(['rm', '-rf', folder], check=True) and os.stat(folder)",
        folder=str(canaries.folder), file=str(canaries.file), secret=str(canaries.secret),
    ))  # fmt: skip
    assert outcome.status == "finished" and outcome.reached_end
    assert outcome.stdout == ""


def test_the_interpreter_and_the_system_cannot_be_changed(attack):
    """Only by making something new where nothing is: an attack that succeeds must not break the machine."""
    outcome = attack(attempts(
        *(f"open({path!r} + '/codegen_fast_canary', 'w')" for path in
          ("/", "/usr", "/usr/lib", "/etc", "/bin", "/dev", "/proc/sys", sys.prefix, sys.base_prefix,
           os.path.dirname(os.__file__), "/root", "/home", "/run", "/var", os.path.expanduser("~"))),
    ))  # fmt: skip
    assert outcome.stdout == "" and outcome.status == "finished"


def test_other_processes_cannot_be_reached(attack, canaries):
    """Everything is aimed at the canary process by its number on the machine."""
    outcome = attack(attempts(
        "os.kill(pid, 9)", "os.killpg(pid, 9)", "signal.pidfd_send_signal(os.pidfd_open(pid), 9)",
        "subprocess.run(['kill', '-9', str(pid)], check=True, stderr=subprocess.DEVNULL)",
        "import resource; resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0))",
        "os.sched_setaffinity(pid, {0})", "os.setpriority(os.PRIO_PROCESS, pid, 19)",
        "assert ctypes.CDLL(None).ptrace(16, pid, 0, 0) == 0", "open(f'/proc/{pid}/environ').read()",
        "open(f'/proc/{pid}/mem', 'r+b')", pid=canaries.process.pid,
    ))  # fmt: skip
    assert outcome.stdout == "" and outcome.status == "finished"
    # A pipe whose arrivals are told to the canary by SIGIO, which ends who does not expect it.
    attack(attempts(
        "import fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, pid);"
        " fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x'); time.sleep(0.1)",
        pid=canaries.process.pid,
    ))  # fmt: skip


def test_the_supervisor_survives_its_program(attack):
    outcome = attack(attempts(
        *(f"os.kill(os.getppid(), {number})" for number in (2, 15, 9, 19)),
        "assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
        "open(f'/proc/{os.getppid()}/mem', 'r+b')",
        "os.listdir(f'/proc/{os.getppid()}/fd')",
    ) + "print('end')\n")  # fmt: skip
    # Process 1 of a namespace may be sent what it ignores.
    assert outcome.status == "finished" and outcome.reached_end and outcome.stdout.endswith("end\n")
    assert "assert" not in outcome.stdout and "/proc" not in outcome.stdout


def test_a_signal_to_everybody_stays_inside(attack, level, canaries):
    """kill(-1): sent only by a program that has made sure that it is in a PID namespace of its own."""
    if level != "namespaces":
        pytest.skip("kill(-1) is tried in PID namespaces only: elsewhere a failing test would end the machine")
    own = os.readlink("/proc/self/ns/pid")
    outcome = attack(f"""
import os, signal, sys
apart = os.readlink("/proc/self/ns/pid") != {own!r} and os.getppid() == 1
pids = {{int(name) for name in os.listdir("/proc") if name.isdigit()}}
if not apart or not pids <= {{1, os.getpid()}}:
    sys.exit("not in a namespace of its own")
if os.fork() == 0:
    signal.pause()
os.kill(-1, signal.SIGTERM)
os.wait()
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    print("alone")
""")
    assert outcome.status == "finished" and outcome.stdout == "alone\n", outcome


def test_there_is_no_network(attack, canaries):
    outcome = attack(attempts(
        "socket.create_connection(('127.0.0.1', port), 1).sendall(b'attack')",
        "socket.create_connection(('localhost', port), 1).sendall(b'attack')",
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW)", "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "s = socket.socket(40, socket.SOCK_STREAM)",  # vsock, a virtual machine's way to its host
        "socket.create_connection(('192.0.2.1', 80), 1)",  # an address that belongs to nobody
        port=canaries.port,
    ))  # fmt: skip
    assert outcome.status == "finished" and outcome.stdout == ""
    # Sending a datagram may seem to work inside: canaries.check() says that none came out.
    attack(attempts("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'attack', ('127.0.0.1', port))",
                    port=canaries.port))  # fmt: skip


def test_a_fork_bomb_fizzles(attack, level, canaries):
    """Seven doublings (128 processes) and 32 more at most, and all end by themselves after a second."""
    with canaries.watched() as counts:
        outcome = attack("""
import os, time
end = time.monotonic() + 1
me = os.getpid()
for _ in range(7):
    try:
        os.fork()
    except OSError:
        pass
refused = 0
for _ in range(32 if os.getpid() == me else 0):
    try:
        if os.fork() == 0:
            break
    except OSError:
        refused += 1
while time.monotonic() < end:
    time.sleep(0.05)
if os.getpid() == me:
    print("refused", refused > 0, flush=True)
os._exit(0)
""")
    if level == "namespaces":
        assert outcome.stdout == "refused True\n"
        assert max(counts) <= LIMITS.processes
    else:  # counted every 50 ms where the kernel's own limit cannot bind
        assert outcome.stdout == "refused True\n" or outcome.detail == "more than 16 processes and threads"


def test_threads_are_limited(attack, level):
    """64 at most, for a second."""
    outcome = attack("""
import threading, time
started = 0
try:
    for _ in range(64):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        started += 1
except RuntimeError:
    print(started, flush=True)
time.sleep(0.2)
""")
    if level == "namespaces":
        assert outcome.stdout == f"{LIMITS.processes - 1}\n"
    else:
        assert outcome.stdout or outcome.detail == "more than 16 processes and threads"


@pytest.mark.parametrize("session", [True, False])
def test_daemons_do_not_outlive_their_program(attack, canaries, session):
    """Forked twice, in a session of its own where that is allowed, deaf to SIGTERM, streams closed."""
    with canaries.watched() as counts:
        outcome = attack(f"""
import os, signal, subprocess, sys, time
if os.fork() == 0:
    if {session}:
        try: os.setsid()
        except OSError: pass
    if os.fork() == 0:
        for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
        os.closerange(0, 100)
        time.sleep(20)
    os._exit(0)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)  # {canaries.token}"])
subprocess.Popen(["sh", "-c", "trap '' TERM HUP; sleep 20; : {canaries.token}"], stdout=subprocess.DEVNULL)
time.sleep(1)
print("left")
""")
    assert outcome.stdout == "left\n" and outcome.status == "finished"
    assert outcome.seconds < 15, "daemons are not waited for"
    assert max(counts) >= 4, "they have been there"


def test_a_chain_of_forks_is_caught(attack):
    """Every link forks the next and ends; 500 links at most."""
    outcome = attack("""
import os
if os.fork() == 0:
    for _ in range(500):
        if os.fork():
            os._exit(0)
    os._exit(0)
""")
    assert outcome.status == "finished"


def test_orphans_that_have_ended_do_not_count(attack):
    """Sixty in a row, never more than a few at a time, under a limit of 16."""
    outcome = attack("""
import os, time
for _ in range(60):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
    os.wait()
    time.sleep(0.02)
print("all")
""")
    assert outcome.stdout == "all\n", outcome


def test_a_sleeper_that_ignores_signals_is_killed(attack):
    outcome = attack("""
import signal, time
for number in set(signal.Signals) - {9, 19}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(20)
""", seconds=0.5)  # fmt: skip
    assert outcome.status == "timed out" and outcome.exit_code == -9 and outcome.detail == "killed after 0.5 s"
    assert 0.5 <= outcome.seconds < 10


def test_a_stopped_program_is_killed(attack):
    assert attack("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", seconds=0.5).status in ("timed out", "failed")


def test_endless_output_is_cut(attack):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = attack("""
import os
while True:
    os.write(1, b"y" * 65536)
    os.write(2, b"z" * 65536)
""", seconds=1)  # fmt: skip
    assert outcome.status == "timed out" and outcome.truncated
    assert outcome.stdout == "y" * LIMITS.output_bytes and outcome.stderr == "z" * LIMITS.output_bytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes: the parent stays small"


def test_a_huge_allocation_fails(attack):
    outcome = attack("x = bytearray(1 << 40)")
    assert outcome.status == "failed" and outcome.detail == "memory limit of 0.5 GB" and "MemoryError" in outcome.stderr
    outcome = attack("x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert outcome.status == "failed" and "MemoryError" in outcome.stderr


def test_memory_is_counted_over_all_processes(attack):
    """Eight processes with 100 MB each against a limit of 512 MiB, for six seconds at most."""
    outcome = attack("""
import os, time
for _ in range(8):
    if os.fork() == 0:
        try:
            block = bytearray(os.urandom(1 << 20) * 100)
            time.sleep(6)
        finally:
            os._exit(0)
time.sleep(6)
""")
    assert outcome.status == "failed" and outcome.detail == "memory limit of 0.5 GB over all its processes"


def test_memory_without_an_owner_is_not_to_be_had(attack):
    outcome = attack(attempts(
        "os.memfd_create('x')", "assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
    ))  # fmt: skip
    assert outcome.stdout == "" and outcome.status == "finished"


def test_files_of_the_scratch_folder_are_limited(attack, level):
    outcome = attack("""
import errno
try:
    open("big", "wb").write(bytes(20 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
""")
    assert outcome.stdout == "EFBIG\n"
    if level == "namespaces":  # elsewhere it is on the disk
        outcome = attack("""
import errno
try:
    for number in range(10):
        open(str(number), "wb").write(bytes(15 << 20))
except OSError as error:
    print(number, errno.errorcode[error.errno])
""")
        assert outcome.stdout == "4 ENOSPC\n"


def test_a_scratch_folder_is_removed_whatever_is_in_it(level, canaries, tmp_path, monkeypatch):
    """Locked folders, a tree deeper than a path may be long, links to the outside, strange names, files held open."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Executor(1, LIMITS, isolation=level) as executor:
        outcome = executor.run(f"""
import os
home = os.getcwd()
os.mkdir("locked", 0)
os.makedirs("a/b"); os.mkdir("a/b/locked", 0)
os.symlink({str(canaries.folder)!r}, "link")
open("new\\nline \\udcff", "w")
os.mkfifo("pipe")
for _ in range(1500):
    os.mkdir("deeper")
    os.chdir("deeper")
open("file", "w")
os.mkdir("locked", 0)
os.chdir(home)
print("made")
""")
        assert outcome.stdout == "made\n", outcome
        assert executor.run("import os; print(os.listdir())").stdout == "['program.py']\n"
    canaries.check()
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_no_descriptor_is_inherited(attack, canaries):
    """A file that the parent has open, inheritable even, is not among the program's; writing to all numbers harms none."""
    with open(canaries.file, "r+") as held:
        os.set_inheritable(held.fileno(), True)
        outcome = attack("""
import os
found = []
for fd in range(3, 256):
    try:
        os.write(fd, b"attack")
        found.append(fd)
    except OSError:
        pass
print(found)
os.closerange(0, 256)
""")
    assert outcome.status == "finished" and outcome.stdout == ""
    assert attack("import os\nprint([fd for fd in range(3, 256) if not _c.CDLL(None).fcntl(fd, 1) == -1])").stdout == "[]\n"


def test_no_secret_of_the_environment_is_there(attack, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    outcome = attack("""
import os
print(sorted(os.environ))
try:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try: print(b"canary" in open(f"/proc/{pid}/environ", "rb").read())
        except OSError: pass
except OSError:
    pass
""")
    assert "HF_TOKEN" not in outcome.stdout and "True" not in outcome.stdout and "HOME" in outcome.stdout


def test_no_way_back_to_privileges(attack):
    outcome = attack(attempts(
        "assert os.getuid() and not os.setuid(0)", "assert os.getgid() and not os.setgid(0)", "os.setgroups([])",
        "assert ctypes.CDLL(None).unshare(0x10000000) == 0", "assert ctypes.CDLL(None).unshare(0x20000) == 0",
        "assert ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None) == 0",
        "assert ctypes.CDLL(None).umount2(b'/proc', 2) == 0",
        "subprocess.run(['su', '-c', 'true'], check=True, stderr=subprocess.DEVNULL)",
        "subprocess.run(['unshare', '-Ur', 'true'], check=True, stderr=subprocess.DEVNULL)",
        "os.mknod('disk', 0o60600, os.makedev(8, 0))", "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ))  # fmt: skip
    assert outcome.stdout == "" and outcome.status == "finished"


def test_programs_leave_nothing_for_the_next(level):
    """Neither files nor memory: a later program searches its own process for an earlier one's source."""
    with Executor(1, LIMITS, isolation=level) as executor:
        secret = "needle" + "-in-a-" + "haystack"
        assert executor.run(f"open('left', 'w').write('x'); x = {secret!r}; print(x)").stdout == f"{secret}\n"
        outcome = executor.run("""
import gc, os
word = "needle" + "-in-a-"
print(os.listdir(), [x for x in gc.get_objects() if isinstance(x, dict) and any(word in str(v)[:200] for v in x.values()
      if isinstance(v, str) and v is not word)] == [])
""")
    assert outcome.stdout.startswith("['program.py']"), outcome
