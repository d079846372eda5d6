# shellcheck shell=bash
# What the scripts share: messages, missing packages, the Swift toolchain, the release build, Swagger UI's files.
# Sourced, never run; expects `set -euo pipefail` from its caller and defines $root, the top of the repository.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Flags of every release build, the same everywhere so that no script rebuilds what another has built. The Swift
# runtime is linked in, so that the binary runs on machines without a toolchain.
release_flags=(-c release --product diffused --static-swift-stdlib)

# Flags of the debug build with the tests. A compiler process a module instead of one a file halves its time; what changes between two
# runs is less often a file than a module.
test_flags=(--build-tests -Xswiftc -whole-module-optimization -Xswiftc -num-threads -Xswiftc 2)

# The libraries the package links with, and a device to run on.
build_packages=(ocl-icd-opencl-dev libclblast-dev libpng-dev libturbojpeg0-dev libyaml-dev zlib1g-dev pocl-opencl-icd)

note() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly when root, else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root: $*"
    fi
}

is_installed() { dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# Fetches Debian's package lists, at most once a run.
package_lists_are_fresh=no
update_package_lists() {
    [ "$package_lists_are_fresh" = no ] || return 0
    package_lists_are_fresh=yes
    note "+ apt-get update"
    as_root apt-get -qq update </dev/null >&2 || note "apt-get update failed; going on with the package lists that are here"
}

# Installs the Debian packages among the arguments that are missing; silent when none is.
install_packages() {
    local package missing=()
    if ! have apt-get; then
        note "There is no apt-get here. Please see to it yourself that the equivalents of these Debian packages are"
        note "installed: $*"
        return 0
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    update_package_lists
    note "+ apt-get install ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}" \
        </dev/null >&2 || die "could not install ${missing[*]}; install them by hand and run this again"
}

# Finds `swift` of at least the version Package.swift asks for, or says how to get it.
require_swift() {
    local tools_version found
    if ! have swift && [ -x "${SWIFTLY_BIN_DIR:-$HOME/.local/share/swiftly/bin}/swift" ]; then
        PATH="${SWIFTLY_BIN_DIR:-$HOME/.local/share/swiftly/bin}:$PATH"
    fi
    tools_version=$(sed -n 's|^// swift-tools-version: *\([0-9.]*\).*|\1|p' "$root/Package.swift")
    if ! have swift; then
        note "No Swift toolchain was found. diffused needs Swift $tools_version or later (6.3 is what it is tested with):"
        note "  https://www.swift.org/install/linux/   download for your distribution, or swiftly, Swift's installer"
        note "Then run this again, with the toolchain's usr/bin in PATH."
        exit 1
    fi
    found=$(swift --version 2>/dev/null | sed -n 's/.*Swift version \([0-9.]*\).*/\1/p' | head -n 1)
    [ -n "$found" ] || die "'swift --version' of $(command -v swift) does not work"
    if [ "$(printf '%s\n' "$tools_version" "$found" | sort -V | head -n 1)" != "$tools_version" ]; then
        die "Swift $found ($(command -v swift)) is too old: diffused needs $tools_version or later"
    fi
}

# Builds the release binary unless it is up to date, and sets $diffused to its path.
build_release() {
    require_swift
    install_packages "${build_packages[@]}"
    note "Building diffused (release; a few minutes the first time)"
    (cd "$root" && swift build "${release_flags[@]}" </dev/null >&2) || die "the build failed"
    # shellcheck disable=SC2034  # for the caller
    diffused=$(cd "$root" && swift build "${release_flags[@]}" --show-bin-path)/diffused
}

# Swagger UI's files, which /docs serves, are in no repository of ours: they are taken from a package into
# .build/swagger-ui. PyPI's `swagger-ui-bundle` is newer (4.15.5); Debian's `python3-flasgger` (3.28) needs no pip.
# Without either, everything but the page at /docs works.
swagger_ui="$root/.build/swagger-ui"
swagger_ui_files=(swagger-ui.css swagger-ui-bundle.js)
swagger_ui_requirement='swagger-ui-bundle==1.1.0 --hash=sha256:f7526f7bb99923e10594c54247265839bec97e96b0438561ac86faf40d40dd57'

have_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

fetch_swagger_ui() {
    local directory file bundle complete=yes
    for file in "${swagger_ui_files[@]}"; do
        [ -s "$swagger_ui/$file" ] || complete=no
    done
    [ "$complete" = no ] || return 0

    note "Fetching Swagger UI for /docs"
    directory=$(mktemp -d)
    mkdir "$directory/unpacked"
    if have_pip && fetch_from_pypi "$directory" "$swagger_ui_requirement" &>"$directory/log"; then
        python3 -m zipfile -e "$directory"/swagger_ui_bundle-*.whl "$directory/unpacked"
    elif have apt-get && have dpkg-deb && (cd "$directory" && apt_download python3-flasgger) &>>"$directory/log"; then
        dpkg-deb -x "$directory"/python3-flasgger_*.deb "$directory/unpacked"
    fi
    bundle=$(find "$directory/unpacked" -name swagger-ui-bundle.js)
    if [ -n "$bundle" ]; then
        mkdir -p "$swagger_ui"
        for file in "${swagger_ui_files[@]}"; do
            cp "$(dirname "$bundle")/$file" "$swagger_ui/$file"
        done
    else
        sed 's/^/    /' "$directory/log" >&2
        note "Swagger UI could not be fetched, so the page at /docs will not work; everything else does."
        note "Run this again when the network is back."
    fi
    rm -rf "$directory"
}

# Downloads wheels into a directory. The second argument is a requirements file's text with every version and hash pinned.
fetch_from_pypi() {
    printf '%s\n' "$2" >"$1/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --dest "$1" --requirement "$1/requirements.txt" </dev/null
}

# Downloads a Debian package into the current directory; the lists are fetched first where there are none yet.
apt_download() {
    apt-get -qq download "$1" </dev/null 2>/dev/null && return 0
    update_package_lists
    apt-get -qq download "$1" </dev/null
}

# The value of a key in config.yaml, good enough for keys that appear once; not a YAML parser.
configured() { sed -n "s/.*\b$2: *\([^ ,}#]*\).*/\1/p" "$1" | head -n 1; }
