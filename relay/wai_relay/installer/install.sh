#!/bin/sh
# Install wai: a relay, or a node on this machine. See `sh install.sh --help`.
#
# All code is in functions, and the last line calls `main`, so that an incomplete download does
# nothing. A relay that serves this script fills in the first four variables of `main`.

main() {
RELAY=''
PIN=''
WHEEL=''
SHA256=''
  set -eu
  umask 022
  if [ $# -eq 0 ] && [ -z "${WAI_INVITE:-}" ]; then
    usage >&2
    exit 2
  fi
  leave_folder
  read_arguments "$@"
  if [ "$in_arguments" = yes ]; then hide_invite "$@"; fi
  choose_places
  if [ "$remove" = yes ]; then
    uninstall
  else
    check_machine
    "install_$role"
  fi
  if [ "$dry" = yes ]; then step "Nothing was done: this was --dry-run"; fi
}

usage() {
  cat <<'END'
usage: install.sh node [--name NAME] [--upstream URL] [--engine auto|none]
                                                           this machine becomes a node
       install.sh relay --domain llm.example.com [--email YOU@example.com]
       install.sh relay [--public-url https://HOST:PORT]   with a certificate of its own
       install.sh node|relay --uninstall [--purge]

A node's invite is in the variable WAI_INVITE (the line that `wai invite create` prints sets it), or
on the standard input of `install.sh -`, or asked for. As an argument others could read it.

  --dry-run          check, and print what would be done
  --user             into the home folder, also for root (without root that is so anyway)
  --upstream URL     the inference server that the node serves, where it is on no usual port
  --engine auto|none whether a llama.cpp that fits this machine is installed if there is none, to run
                     models that are deployed (default: auto; with --upstream none). A node without
                     one serves what it finds. WAI_ENGINE_MIRROR: from where, as the docs say
  --listen HOST:PORT where the relay listens (default :443 with a domain, else :8443: IPv4 and IPv6)
  --wheel FILE       install this wheel of wai; a relay also installs the clone that this script is in
  --no-hashes        install what the package index has, unchecked, where a locked version has no
                     wheel for this machine
  --no-service       start nothing, and print how to
  --purge            with --uninstall: keys and data too
  --yes              with --uninstall: don't ask

As root: a service of the machine, in /opt/wai. Else one of yours, in ~/.local/share/wai
(XDG_DATA_HOME/wai where that is set).
PYTHON=… says which Python (3.11 or newer) to use; PIP_… and HTTPS_PROXY mean what they always do.
END
}

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

# Run a command, or with --dry-run only print it. The command does not get the script's stdin.
run() {
  if [ "$dry" = yes ]; then
    say "would run: $*"
  else
    "$@" </dev/null
  fi
}

# Write stdin to the file $1 with mode $2.
put() {
  if [ "$dry" = yes ]; then
    say "would write: $1"
    cat >/dev/null
    return
  fi
  rm -f "$1.new"
  (umask 077 && cat >"$1.new")
  chmod "$2" "$1.new"
  mv "$1.new" "$1"
}

# Leave the current folder and clean the environment. The script may run as root in a folder that
# others can write to, or (sudo -E) with another user's environment. After this no Python process,
# pip's included, imports modules from there. pip's own variables are kept, except those that make it
# run or write something else.
leave_folder() {
  here=$(pwd 2>/dev/null) || here=/
  clone=none # a script piped into sh is not in a clone, even if the current folder is one
  case $0 in *install.sh) clone=$(absolute "$(dirname "$0")") ;; esac
  case ${PYTHON:-} in */*) PYTHON=$(absolute "$PYTHON") ;; esac
  case ${TMPDIR:-/} in /*) ;; *) TMPDIR=$(absolute "$TMPDIR") ;; esac
  cd /
  for variable in $(env | sed -n 's/^\(PYTHON[A-Z0-9_]\{1,\}\)=.*/\1/p'); do unset "$variable"; done
  unset PIP_PYTHON PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_LOG PIP_REPORT PIP_DRY_RUN \
    PIP_REQUIREMENT PIP_EDITABLE PIP_NO_BINARY PIP_REQUIRE_HASHES
  export PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
}

# Print $1 as an absolute path.
absolute() {
  case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$here/$1" ;; esac
}

read_arguments() {
  role='' name='' domain='' email='' public_url='' listen='' wheel='' upstream='' engine=''
  dry=no user=no remove=no purge=no yes=no service=yes hashes=yes in_arguments=no
  invite=${WAI_INVITE:-}
  unset WAI_INVITE # child processes do not need it
  if [ -n "$invite" ]; then role=node; fi
  while [ $# -gt 0 ]; do
    case $1 in
      relay | node) role=$1 ;;
      wai_inv_*) role=node invite=$1 in_arguments=yes ;;
      -)
        [ "$clone" != none ] || fail "standard input is this script: pass the invite in WAI_INVITE"
        read -r invite || [ -n "$invite" ] || fail "there is no invite on standard input"
        role=node
        ;;
      --name | --domain | --email | --public-url | --listen | --wheel | --upstream | --engine)
        [ $# -gt 1 ] || fail "$1 needs a value"
        case $2 in *[\"\'\\]* | -*) fail "$1 can't be $2" ;; esac
        case $1 in
          --name) name=$2 ;;
          --domain) domain=$2 ;;
          --email) email=$2 ;;
          --public-url) public_url=$2 ;;
          --listen) listen=$2 ;;
          --wheel) wheel=$2 ;;
          --upstream) upstream=$2 ;;
          --engine) engine=$2 ;;
        esac
        shift
        ;;
      --dry-run) dry=yes ;;
      --user) user=yes ;;
      --uninstall) remove=yes ;;
      --purge) purge=yes ;;
      --yes) yes=yes ;;
      --no-service) service=no ;;
      --no-hashes) hashes=no ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) fail "unknown argument $1 (an invite begins with wai_inv_); see --help" ;;
    esac
    shift
  done
  [ -n "$role" ] || fail "say \`relay\`, \`node\`, or give an invite; see --help"
  case $role$invite in
    relay* | node | nodewai_inv_*) ;;
    *) fail "that is not an invite: an invite begins with wai_inv_" ;;
  esac
  if [ "$purge" = yes ] && [ "$remove" = no ]; then fail "--purge goes with --uninstall"; fi
  check_values
}

# Restart the script with the invite in the environment instead of the arguments: every user of the
# machine can read the arguments of a process, but only its own user the environment.
hide_invite() {
  say "install.sh: other users of this machine can read an invite that is an argument: better use the" \
    "line that \`wai invite create\` prints" >&2
  for argument; do
    shift
    case $argument in wai_inv_*) ;; *) set -- "$@" "$argument" ;; esac
  done
  cd "$here"
  export WAI_INVITE="$invite"
  if [ "$clone" != none ]; then exec sh "$0" node "$@"; fi
  # The script came through a pipe and cannot be read again: download it again, if that is safe.
  if [ -n "$RELAY" ] && [ "$dry" = no ] && command -v curl >/dev/null 2>&1; then
    script=$(mktemp)
    download "$RELAY/install.sh" "$script" >&2
    exec 3<"$script"
    rm -f "$script"
    exec sh -s -- node "$@" <&3
  fi
  unset WAI_INVITE
  cd /
}

# Check the options. A mistake would otherwise be noticed only when the service fails to start.
check_values() {
  case $name in *[!A-Za-z0-9._-]*) fail "--name is letters, digits, '.', '_' and '-', not $name" ;; esac
  case $engine in '' | auto | none) ;; *) fail "--engine is auto or none, not $engine" ;; esac
  case $upstream in '' | http://?* | https://?*) ;; *) fail "--upstream is http://HOST:PORT, not $upstream" ;; esac
  case $public_url in '' | http://?* | https://?*) ;; *) fail "--public-url is https://HOST:PORT, not $public_url" ;; esac
  case $upstream$public_url in *[[:space:]]*) fail "a URL has no spaces" ;; esac
  case $listen in '' | *:*[0-9]) ;; *) fail "--listen is HOST:PORT, or :PORT for every address, not $listen" ;; esac
  if [ -n "$domain" ] && ! printf '%s\n' "$domain" |
    grep -Eqx '([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*'; then
    fail "--domain is a name in lower case, as llm.example.com (no https://, no port), not $domain"
  fi
}

# Set the paths of all files and folders. They are not checked yet.
choose_places() {
  system=$(uname -s)
  case $system in Linux | Darwin) ;; *) fail "wai runs on Linux and macOS, not on $system" ;; esac
  if [ "$(id -u)" -ne 0 ]; then user=yes; fi
  if [ "$system" = Darwin ] && [ "$user" = no ]; then
    fail "on macOS it is installed for one user: run it without sudo"
  fi
  if [ "$user" = no ]; then
    env=/opt/wai etc=/etc/wai bin=/usr/local/bin man=/usr/local/share/man state=/var/lib/wai-$role unit_data=
    units=/etc/systemd/system unit_file=wai-$role.service
    # pip must read root's settings, not those of the user who called sudo.
    HOME=~root
    unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME
  else
    [ -n "${HOME:-}" ] || fail "HOME is not set: where is your home folder?"
    case $HOME in
      /*[\"\'\\%\|\&\<\>]* | [!/]*) fail "the home folder $HOME can't be written into a service file" ;;
    esac
    # As the `wai` commands do, by the XDG convention, which ignores relative paths.
    data=$HOME/.local/share/wai unit_data=%h/.local/share/wai
    case $system${XDG_DATA_HOME:-} in Linux/*) data=$XDG_DATA_HOME/wai unit_data=$data ;; esac
    case $unit_data in
      %h/*) ;;
      *[!A-Za-z0-9/._+@,:-]*) fail "XDG_DATA_HOME=$XDG_DATA_HOME can't be written into a service file: unset it" ;;
    esac
    env=$data/venv etc=$HOME/.config/wai bin=$HOME/.local/bin man=$HOME/.local/share/man state=$data/$role
    units=$HOME/.config/systemd/user unit_file=wai-$role.user.service
    if [ "$system" = Darwin ]; then
      state="$HOME/Library/Application Support/wai/$role"
      units=$HOME/Library/LaunchAgents unit_file=wai-$role.plist
    fi
  fi
  find_service_manager
}

find_service_manager() {
  manager=none
  if [ "$system" = Darwin ]; then
    if [ "$role" = node ]; then manager=launchd; fi
    unit=$units/wai.$role.plist
    return
  fi
  unit=$units/wai-$role.service
  if command -v systemctl >/dev/null 2>&1; then
    case $(control is-system-running 2>/dev/null || :) in
      running | degraded | starting | initializing | maintenance) manager=systemd ;;
    esac
  fi
}

control() {
  if [ "$user" = yes ]; then systemctl --user "$@"; else systemctl "$@"; fi
}

# Quote $1, if necessary, for a command that is shown to the user.
quoted() {
  case $1 in *[!A-Za-z0-9/._+-]*) printf "'%s'" "$1" ;; *) printf '%s' "$1" ;; esac
}

# Like `control`, but with --dry-run only print the command.
manage() {
  if [ "$user" = yes ]; then run systemctl --user "$@"; else run systemctl "$@"; fi
}

check_machine() {
  step "Checking this machine"
  find_python
  need_kb=$((250 * 1024))
  folder=$env
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free_kb=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $need_kb ] || fail "$folder has $((free_kb / 1024)) MB free, 250 MB are needed"
  if [ "$dry" = no ]; then
    mkdir -p "$(dirname "$env")" 2>/dev/null || fail "$(dirname "$env") can't be made: try with sudo"
  fi
  say "$system, $("$python" -V 2>&1) ($python), $((free_kb / 1024)) MB free in $folder"
  case $manager in
    systemd) if [ "$user" = yes ]; then say "systemd runs your services"; else say "systemd runs here"; fi ;;
    launchd) say "launchd will run it" ;;
    none) say "there is no service manager to start it; the command is shown at the end" ;;
  esac
}

find_python() {
  for python in ${PYTHON:+"$PYTHON"} python3.14 python3.13 python3.12 python3.11 python3 /usr/bin/python3; do
    python=$(command -v "$python" 2>/dev/null) || continue
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    # The service's own user cannot read home folders.
    case $user$("$python" -I -c 'import sys; print(sys.base_prefix)') in
      no/root/* | no/home/*) continue ;;
    esac
    "$python" -I -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$python lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv"
    return
  done
  fail "Python 3.11 or newer is needed: install it (apt-get install python3 python3-venv, dnf install python3.12, brew install python), or say where it is with PYTHON=…"
}

check_port() {
  # If the relay runs already, it has the port itself.
  if [ "$manager" = systemd ] && control is-active --quiet "wai-$role" </dev/null; then return; fi
  "$python" -I - "$listen" <<'END' || fail "choose another address with --listen HOST:PORT"
import errno, os, socket, sys
host, _, port = sys.argv[1].rpartition(":")
try:
    for one in [host.strip("[]")] if host else ["0.0.0.0", "::"]:
        try:
            probe = socket.socket(socket.AF_INET6 if ":" in one else socket.AF_INET)
        except OSError:
            if one == "::" and not host:
                continue  # no IPv6 here
            raise
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in one:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((one, int(port)))
except (OSError, ValueError) as error:
    why = {errno.EADDRINUSE: "it is taken", errno.EACCES: "ports below 1024 are root's"}.get(
        getattr(error, "errno", 0), error
    )
    sys.exit(f"install.sh: the relay can't listen on {sys.argv[1]}: {why}")
END
}

# -- the software

# Sets `wheel` to a file and `digest` to its SHA-256.
get_wheel() {
  given=''
  if [ -n "$wheel" ]; then
    given=$(absolute "$wheel")
    [ -f "$given" ] || fail "there is no file $wheel"
    wheel=$given
    if [ "$dry" = no ]; then
      # Install the copy that is hashed, even if somebody changes the original meanwhile.
      wheel=$work/$(basename "$given")
      cp "$given" "$wheel"
    fi
  elif [ -n "$RELAY" ]; then
    wheel=$work/$WHEEL
    if [ "$dry" = yes ]; then
      say "would download: $RELAY/dist/$WHEEL"
      digest=$SHA256
      return
    fi
    download "$RELAY/dist/$WHEEL" "$wheel"
  elif grep -qs '^name = "wai"' "$clone/pyproject.toml"; then
    if [ "$dry" = yes ]; then
      say "would build a wheel of $clone"
      wheel=wai-….whl digest=unknown
      return
    fi
    build_wheel
  else
    fail "which wai? Run the install.sh of a clone or of a relay (https://RELAY/install.sh), or add --wheel FILE"
  fi
  digest=$("$python" -I -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$wheel")
  if [ -n "$SHA256" ] && [ -z "$given" ] && [ "$digest" != "$SHA256" ]; then
    fail "the downloaded $WHEEL has another SHA-256 ($digest) than this script expects: try again"
  fi
}

# Build a wheel of the clone and set `wheel` to it. It is built in a copy, because with sudo the clone
# would get files that belong to root.
build_wheel() {
  say "building a wheel of $clone (a minute)"
  mkdir "$work/clone"
  (cd "$clone" && tar -cf - --exclude ./.git --exclude ./.venv --exclude ./.cache --exclude node_modules .) |
    (cd "$work/clone" && tar -xf -)
  "$python" -I -m venv "$work/build"
  builder=$work/build/bin/python
  isolation=''
  if [ "$hashes" = yes ]; then
    isolation=--no-build-isolation
    install_locked "$builder" "$work/clone/relay/build.lock"
    # Node.js for the dashboard, if this machine has none that is new enough.
    more=$(cd "$work/clone" && "$builder" -I -c 'from hatchling.build import get_requires_for_build_wheel
print(*get_requires_for_build_wheel())') || fail "wai could not be built: Python says why above"
    if [ -n "$more" ]; then install_locked "$builder" "$work/clone/relay/build-node.lock"; fi
  fi
  "$builder" -I -m pip wheel --quiet --disable-pip-version-check --no-deps $isolation \
    --wheel-dir "$work" "$work/clone" </dev/null || fail "wai could not be built: pip says why above"
  wheel=$(echo "$work"/wai-*.whl)
}

# Install into the environment of the Python $1 exactly the files whose SHA-256 is in the list $2. The
# other arguments are passed to pip.
install_locked() {
  into=$1 list=$2
  shift 2
  run "$into" -I -m pip install --quiet --disable-pip-version-check "$@" --require-hashes \
    --only-binary :all: -r "$list" && return
  fail "pip could not install what wai needs, and says why above. Where it finds no version, there is
no wheel of the one that was checked for this processor and Python: another Python (PYTHON=…) may have
one, and --no-hashes installs what the package index has, unchecked."
}

# Set `lock` to the wheel's list of its dependencies, with the SHA-256 of every file.
get_lock() {
  lock=$work/requirements.lock
  if [ "$dry" = yes ]; then return; fi
  "$python" -I -c 'import sys, zipfile
sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("wai_relay/installer/requirements.lock"))' \
    "$wheel" >"$lock" 2>/dev/null ||
    fail "the wheel has no list of the hashes of what it needs: add --no-hashes, or take a newer one"
}

download() {
  say "downloading $1"
  if command -v curl >/dev/null 2>&1; then
    if [ -n "$PIN" ]; then
      # -k turns off the check by certificate authorities; the pin is checked nevertheless.
      curl -fsSk --pinnedpubkey "$PIN" --retry 3 -o "$2" "$1" </dev/null
    else
      curl -fsSL --retry 3 -o "$2" "$1" </dev/null
    fi || fail "$1 can't be downloaded"
    return
  fi
  # The certificate is not checked, because the file is compared with the SHA-256 in this script.
  "$python" -I - "$1" "$2" <<'END' || fail "$1 can't be downloaded"
import ssl, sys, urllib.request
context = ssl._create_unverified_context()
with urllib.request.urlopen(sys.argv[1], timeout=60, context=context) as answer:
    open(sys.argv[2], "wb").write(answer.read())
END
}

install_software() {
  step "Installing the software into $env"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  changed=no
  if [ -n "$SHA256" ] && [ -z "$wheel" ] && has "$SHA256"; then
    say "up to date: $("$env/bin/wai" version)"
  else
    get_wheel
    if has "$digest"; then say "up to date: $("$env/bin/wai" version)"; else put_software; fi
  fi
  run touch "$env/.role-$role"
  run mkdir -p "$bin"
  if [ -e "$bin/wai" ] && [ ! -L "$bin/wai" ]; then
    say "$bin/wai is another program and stays; call this one $env/bin/wai"
  else
    run ln -sf "$env/bin/wai" "$bin/wai"
    put_manual
  fi
  wai=$(quoted "$env/bin/wai")
  case :$PATH: in *:"$bin":*) wai=wai ;; esac
}

# Write the manual pages, which `man` finds by the folder of the command.
put_manual() {
  if [ "$dry" = yes ]; then
    say "would write the manual pages: $man/man1/wai*.1, $man/man5/wai-*.toml.5"
  elif ! "$env/bin/wai" manual "$man" </dev/null >/dev/null 2>&1; then
    say "the manual pages could not be written into $man: wai manual DIR does it"
  fi
}

# Return whether the wheel with the SHA-256 $1 is installed and works.
has() {
  [ "$(cat "$env/.wheel" 2>/dev/null)" = "$1" ] && "$env/bin/wai" version >/dev/null 2>&1
}

put_software() {
  changed=yes
  # Make the environment again if its Python was removed (by an upgrade of the system).
  if ! "$env/bin/python" -I -m pip --version >/dev/null 2>&1; then
    run "$python" -I -m venv --clear "$env"
  fi
  if [ "$dry" = no ]; then say "installing wai and what it needs (a minute)"; fi
  if [ "$hashes" = yes ]; then
    get_lock
    if [ -e "$env/.locked" ]; then
      install_locked "$env/bin/python" "$lock"
    else
      # pip does not check installed packages, so those that were installed unchecked are replaced.
      install_locked "$env/bin/python" "$lock" --force-reinstall
    fi
    run touch "$env/.locked"
  else
    run rm -f "$env/.locked"
    run "$env/bin/python" -I -m pip install --quiet --disable-pip-version-check --upgrade "$wheel" ||
      fail "pip could not install it, and says why above"
  fi
  # Install the wheel of wai, whose SHA-256 was checked. It is forced, because pip would keep an older
  # build of the same version.
  run "$env/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
    --force-reinstall "$wheel" || fail "pip could not install it, and says why above"
  say "$digest" | put "$env/.wheel" 644
  if [ "$dry" = no ]; then say "installed: $("$env/bin/wai" version)"; fi
}

# -- the service

# Create the service's user and folders.
make_user() {
  if [ "$user" = yes ]; then
    run mkdir -p "$etc" "$state"
    run chmod 700 "$state"
    return
  fi
  if ! id "wai-$role" >/dev/null 2>&1; then
    command -v useradd >/dev/null 2>&1 || fail "there is no useradd here: use --user"
    run useradd --system --user-group --home-dir "$state" --no-create-home \
      --shell /usr/sbin/nologin "wai-$role"
  fi
  if [ "$role" = node ]; then
    for group in video render; do # these groups may use the graphics cards
      if getent group $group >/dev/null; then run usermod -aG $group wai-node; fi
    done
  fi
  run mkdir -p "$etc" "$state"
  run chown "wai-$role:wai-$role" "$state"
  run chmod 700 "$state"
}

# Run a command as the user that the data folder belongs to.
as_owner() {
  if [ "$user" = yes ]; then
    "$@"
  else
    runuser -u "wai-$role" -- "$@"
  fi
}

put_unit() {
  files=$("$env/bin/python" -I -c 'import os, wai_relay.installer as i; print(os.path.dirname(i.__file__))' 2>/dev/null || :)
  if [ "$dry" = yes ]; then
    say "would write: $unit"
    return
  fi
  mkdir -p "$units"
  sed -e "s|@HOME@|${HOME:-}|g" -e "s|%h/\.local/share/wai|$unit_data|g" "$files/services/$unit_file" >"$unit.new"
  if cmp -s "$unit.new" "$unit"; then rm "$unit.new"; else
    mv "$unit.new" "$unit"
    changed=yes
  fi
}

start_service() {
  if [ "$service" = no ] || [ "$manager" = none ]; then
    started=no
    return
  fi
  started=yes until=boot
  step "Starting the service"
  put_unit
  if [ "$manager" = launchd ]; then
    run launchctl bootout "gui/$(id -u)/wai.$role" 2>/dev/null || :
    run launchctl bootstrap "gui/$(id -u)" "$unit" || fail "launchd would not start it: see above"
    return
  fi
  if [ "$user" = yes ]; then
    # Without lingering the service ends when the user logs out. If it cannot be enabled here, an
    # admin may have enabled it.
    if [ "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)" != yes ]; then
      run loginctl enable-linger 2>/dev/null || until=log-in
    fi
  fi
  was_active=no
  if control is-active --quiet "wai-$role" </dev/null; then was_active=yes; fi
  manage daemon-reload
  manage enable --quiet "wai-$role"
  if [ $was_active = no ]; then
    manage start "wai-$role" || service_failed
  elif [ "$changed" = yes ] && [ "$role" = relay ]; then
    say "the new relay takes over from the running one; no connection is lost"
    manage kill --signal=USR2 --kill-who=main wai-relay || service_failed
  elif [ "$changed" = yes ]; then
    manage restart "wai-$role" || service_failed
  else
    say "nothing to do: it runs already"
  fi
}

tell_of_linger() {
  [ "$until" = log-in ] || return 0
  say "It ends when you log out, unless an admin runs once: sudo loginctl enable-linger $(id -un)"
}

# A relay or node that was started by hand keeps running with its old software.
tell_of_running() {
  if process=$(still_runs); then say "A $role runs here already (process $process): stop it, then go on."; fi
}

service_failed() {
  if [ "$user" = yes ]; then fail "it did not start: journalctl --user -u wai-$role says why"; fi
  fail "it did not start: journalctl -u wai-$role says why"
}

# -- a node

install_node() {
  if [ -z "$invite" ] && [ ! -e "$state/membership.json" ] && [ "$dry" = no ]; then ask_for_invite; fi
  [ -n "$invite" ] || [ -e "$state/membership.json" ] ||
    fail "a node needs an invite: run \`wai invite create\` on the relay, or \"Add a node\" in its dashboard"
  install_software
  make_user
  if [ -n "$invite" ]; then join; fi
  node_environment
  find_engine
  start_service
  finish_node
}

# Ask for the invite on the terminal, if there is one. The input is not shown.
ask_for_invite() {
  [ -t 2 ] || return 0
  trap 'stty echo </dev/tty; exit 130' HUP INT TERM
  {
    stty -echo </dev/tty
    printf 'Invite (it is not shown): ' >/dev/tty
    read -r invite </dev/tty || :
    stty echo </dev/tty
    echo >/dev/tty
  } 2>/dev/null || :
  trap - HUP INT TERM
}

join() {
  step "Joining the relay"
  if [ "$dry" = yes ]; then
    say "would run: wai node join - --data $state (the invite on its stdin)"
    return
  fi
  before=$(cksum "$state/membership.json" 2>/dev/null || :)
  # By stdin, because every user of the machine can read arguments.
  printf '%s\n' "$invite" |
    as_owner "$env/bin/wai" node join - --data "$state" ${name:+--name "$name"} >"$work/joined" || exit 1
  cut -d ';' -f 1 "$work/joined"
  if [ "$before" != "$(cksum "$state/membership.json")" ]; then changed=yes; fi
}

# Write the environment of the node's service, which does not get this shell's environment.
node_environment() {
  if [ -n "$upstream" ]; then set_for_node WAI_NODE_UPSTREAMS "[{url = \"$upstream\"}]"; fi
  if [ -n "${WAI_ENGINE_MIRROR:-}" ]; then set_for_node WAI_ENGINE_MIRROR "$WAI_ENGINE_MIRROR"; fi
  proxy=${https_proxy:-${HTTPS_PROXY:-}}
  [ -n "$proxy" ] || return 0
  say "the node will use the proxy that HTTPS_PROXY names"
  set_for_node HTTPS_PROXY "$proxy"
  set_for_node NO_PROXY "${no_proxy:-${NO_PROXY:-}}"
}

# Say which engine runs models here, and install one if there is none and that is wanted. The node is
# installed in any case.
find_engine() {
  step "The engine that runs models"
  if [ "$dry" = yes ]; then
    say "would run: wai node engine install --data $state, if there is no llama.cpp and --engine is not none"
    return
  fi
  used=$(as_owner "$env/bin/wai" node engine list --json --data "$state" 2>/dev/null |
    "$env/bin/python" -I -c 'import json, sys
print(next((row["name"] for row in json.load(sys.stdin) if row["used"]), ""))' 2>/dev/null) || used=''
  if [ -n "$used" ]; then
    say "Models that are deployed run on $used."
  elif [ "${engine:-${upstream:+none}}" = none ]; then
    say "There is no llama.cpp here. To run models that are deployed: wai node engine install"
  elif ! as_owner "$env/bin/wai" node engine install --data "$state" </dev/null; then
    say "No engine was installed; the node serves what it finds. Later: wai node engine install"
  fi
}

# Set the variable $1 to $2 in the node's environment file. Mode 600, because $2 may hold a password.
set_for_node() {
  case $2 in *\'*) fail "$1 can't have a quote in it" ;; esac
  kept=$(grep -sv "^$1=" "$etc/node.env" || :)
  printf "%s\n%s='%s'\n" "$kept" "$1" "$2" | sed '/^$/d' >"$work/node.env"
  if cmp -s "$work/node.env" "$etc/node.env"; then return; fi
  put "$etc/node.env" 600 <"$work/node.env"
  changed=yes
}

finish_node() {
  if [ "$dry" = yes ]; then return; fi
  step "Done"
  if [ "$started" = no ]; then
    tell_of_running
    say "Start the node with:"
    # Only the service reads the environment file by itself.
    from=''
    if [ -e "$etc/node.env" ]; then from="set -a; . $(quoted "$etc/node.env"); set +a; "; fi
    say "  $from$(foreground_user)$wai node run --data $(quoted "$state")"
    return
  fi
  say "The node runs, and is started again at every $until. It serves what it finds on the usual ports:"
  say "llama-server 8080, Ollama 11434, LM Studio 1234, vLLM 8000; or models deployed from the dashboard."
  tell_of_linger
  case $manager$user in
    systemdno) say "Its log:    journalctl -u wai-node" ;;
    systemdyes) say "Its log:    journalctl --user -u wai-node" ;;
    *) say "Its log:    $HOME/Library/Logs/wai-node.log" ;;
  esac
  say "Look:       $wai doctor --node-data $(quoted "$state")"
  say "Remove it:  $wai node uninstall"
}

foreground_user() {
  if [ "$user" = yes ]; then return; fi
  if [ "$role" = relay ] && [ "${listen##*:}" -lt 1024 ]; then
    # As in the systemd unit: the permission for low ports is the only one of root's that it gets.
    printf 'setpriv --reuid=wai-relay --regid=wai-relay --init-groups'
    printf ' --inh-caps=+net_bind_service --ambient-caps=+net_bind_service -- '
  else
    printf 'runuser -u wai-%s -- ' "$role"
  fi
}

# -- a relay

install_relay() {
  wanted=$(relay_settings)
  if [ -e "$etc/relay.toml" ]; then listen=$(sed -n 's/^listen = "\(.*\)"$/\1/p' "$etc/relay.toml"); fi
  if [ -z "$listen" ]; then
    if [ -n "$domain" ]; then listen=:443; else listen=:8443; fi
  fi
  if [ -z "$domain$public_url" ] && [ ! -e "$etc/relay.toml" ]; then
    public_url=https://$(own_address):${listen##*:}
    say "no --domain: a certificate of its own, and $public_url is its address (else: --public-url URL)"
  fi
  [ -e "$etc/relay.toml" ] || check_port
  install_software
  make_user
  if [ -e "$etc/relay.toml" ]; then
    say "the settings in $etc/relay.toml stay as they are"
    printf '%s\n' "$wanted" | while read -r line; do
      [ -z "$line" ] || grep -qxF -e "$line" "$etc/relay.toml" || say "  to change that, write there: $line"
    done
  else
    relay_settings_file | put "$etc/relay.toml" 640
    if [ "$user" = no ]; then run chgrp wai-relay "$etc/relay.toml"; fi
  fi
  first=no
  [ -e "$state/relay.db" ] || first=yes
  start_service
  finish_relay
}

# Print this machine's address on its default route. No packet is sent.
own_address() {
  "$python" -I - <<'END'
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
        probe.connect(("192.0.2.1", 9))
        print(probe.getsockname()[0])
    except OSError:
        print("127.0.0.1")
END
}

relay_settings_file() {
  say "# \`wai settings relay\` prints all that may stand here; \`systemctl reload wai-relay\` takes changes over."
  relay_settings
}

relay_settings() {
  if [ -n "$listen" ]; then say "listen = \"$listen\""; fi
  if [ -n "$domain" ]; then
    say 'tls = "acme"'
    say "domain = \"$domain\""
  fi
  if [ -n "$email" ]; then say "acme_email = \"$email\""; fi
  if [ -n "$public_url" ]; then say "public_url = \"$public_url\""; fi
}

finish_relay() {
  if [ "$dry" = yes ]; then return; fi
  if [ "$started" = no ]; then
    step "Done"
    tell_of_running
    say "Start the relay with:"
    say "  $(foreground_user)$wai relay --data $(quoted "$state") --config $(quoted "$etc/relay.toml")"
    say "and go on in a second terminal, with the line for the GPU box and the key for an app:"
    say "  $wai invite create --data $(quoted "$state")"
    say "  $wai key create NAME --data $(quoted "$state")"
    return
  fi
  waited=0
  until [ -e "$state/relay.json" ]; do
    waited=$((waited + 1))
    [ $waited -le 60 ] || service_failed
    sleep 1
  done
  step "Done: the relay runs, and is started again at every $until"
  tell_of_linger
  json_field() { "$env/bin/python" -I -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
  if [ "$first" = no ]; then
    say "More nodes:  $wai invite create        more keys:  $wai key create NAME"
    return
  fi
  line=$("$env/bin/wai" invite create --data "$state" --json | json_field command)
  key=$("$env/bin/wai" key create first --data "$state" --json | json_field key)
  relay=${line%%/install.sh*}
  relay=${relay##* }
  case $line in
    *--pinnedpubkey*) pinned="${line#curl -fsS}" pinned=" -${pinned%% http*}" ;;
    *) pinned='' ;;
  esac
  say "Dashboard:  $("$env/bin/wai" sign-in link --data "$state" --json | json_field url)"
  say "            (that link signs one browser in, within ten minutes; later: $wai sign-in link)"
  if [ -n "$domain" ]; then say "Its certificate for $domain comes in a minute, if port 443 of that name leads here."; fi
  say ""
  say "1. On the GPU box (the line is good for one node, for a day):"
  say ""
  say "  $line"
  say ""
  say "2. From anywhere; MODEL is what the node serves, the key is shown this once:"
  say ""
  say "  curl -sSN$pinned $relay/v1/chat/completions -H 'Authorization: Bearer $key' -H 'Content-Type: application/json' -d '{\"model\": \"MODEL\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'"
  say ""
  say "The models:  curl -sS$pinned $relay/v1/models -H 'Authorization: Bearer $key'"
}

# -- removing

# Return whether a process uses the data folder, and print its id.
still_runs() {
  "$env/bin/python" -I - "$state/$role.lock" 2>/dev/null <<'END'
import fcntl, sys
with open(sys.argv[1]) as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(lock.read().strip())
    else:
        sys.exit(1)
END
}

uninstall() {
  step "Removing the $role"
  say "This stops the $role and removes its service; $([ $purge = yes ] && echo "its keys and data in $state go too" || echo "its keys and data in $state stay (--purge removes them)")."
  if [ $yes = no ] && [ $dry = no ]; then
    { printf 'Go on? [y/N] ' >/dev/tty && read -r answer </dev/tty; } 2>/dev/null || fail "nobody to ask: add --yes"
    case $answer in y | Y | yes) ;; *) fail "nothing was removed" ;; esac
  fi
  if [ $manager = launchd ]; then
    run launchctl bootout "gui/$(id -u)/wai.$role" 2>/dev/null || :
  elif [ $manager = systemd ] && [ -e "$unit" ]; then
    # The second SIGTERM ends the drain, which could take long: requests in progress are aborted.
    manage disable --quiet "wai-$role" || :
    manage kill --signal=TERM "wai-$role" 2>/dev/null || :
    manage kill --signal=TERM "wai-$role" 2>/dev/null || :
    manage stop "wai-$role" || :
  fi
  if [ $dry = no ] && process=$(still_runs); then
    fail "a $role that was not started as a service runs here (process $process): stop it first"
  fi
  run rm -f "$unit"
  if [ $manager = systemd ]; then manage daemon-reload; fi
  if [ $purge = yes ]; then
    run rm -rf "$state"
    run rm -f "$etc/$role.toml" "$etc/$role.env"
    if [ "$user" = no ] && id "wai-$role" >/dev/null 2>&1; then run userdel "wai-$role" || :; fi
  fi
  run rm -f "$env/.role-$role"
  other=node
  if [ "$role" = node ]; then other=relay; fi
  if [ -e "$env/.role-$other" ]; then
    say "the software in $env stays: the $other here uses it"
  elif [ -e "$env/pyvenv.cfg" ] && [ -e "$env/.wheel" ]; then
    if [ "$(readlink "$bin/wai" 2>/dev/null)" = "$env/bin/wai" ]; then
      run rm -f "$bin/wai" "$man"/man1/wai.1 "$man"/man1/wai-*.1 "$man"/man5/wai-*.toml.5
    fi
    run rm -rf "$env"
    rmdir "$etc" 2>/dev/null || :
    if [ "$user" = yes ]; then rmdir "$(dirname "$env")" 2>/dev/null || :; fi
  fi
  if [ $dry = no ]; then say "The $role is removed."; fi
}

main "$@"
