#!/bin/sh
# Make sure that the real programs which some tests run are on this machine: redis-server,
# prometheus with promtool, prometheus-alertmanager, chromium, npm, java, faketime.
#
# As root on Debian (or what calls itself Debian-like), what is missing is installed from the
# distribution's packages, and none of it is started as a system service: the tests start their
# own, on free loopback ports. Anywhere else the script says by name what is missing.
#
#   scripts/services.sh          install what is missing, where that is possible
#   scripts/services.sh --check  only say what is missing
#
# Exit status: 0; 1 when some are missing and --check or STEADFEAST_REQUIRE_SERVICES=1 asks for
# them all; 2 for a wrong argument.
set -eu

# One line a program: the command, then Debian's package that has it.
PROGRAMS="
redis-server redis-server
prometheus prometheus
promtool prometheus
prometheus-alertmanager prometheus-alertmanager
chromium chromium
npm npm
java default-jre-headless
faketime faketime
"

case "${1:-}" in
    "") install=yes ;;
    --check) install=no ;;
    *)
        echo "usage: $0 [--check]" >&2
        exit 2
        ;;
esac

# Debian keeps some servers in sbin, which a user's PATH may lack.
PATH="$PATH:/usr/sbin:/sbin"

missing_packages() {
    echo "$PROGRAMS" | while read -r program package; do
        [ -z "$program" ] || command -v "$program" >/dev/null || echo "$package"
    done | sort -u
}

is_debian() {
    [ -r /etc/os-release ] && command -v apt-get >/dev/null &&
        (. /etc/os-release && case " ${ID:-} ${ID_LIKE:-} " in *" debian "*) true ;; *) false ;; esac)
}

# Debian starts a server when it installs one, unless policy-rc.d says 101 (action forbidden).
# A policy that is already there belongs to somebody: it is left as it is.
policy=/usr/sbin/policy-rc.d
ours=no
remove_policy() {
    [ "$ours" = no ] || rm -f "$policy"
}

missing=$(missing_packages)
if [ -n "$missing" ] && [ "$install" = yes ] && [ "$(id -u)" = 0 ] && is_debian; then
    echo "installing" $missing
    trap remove_policy EXIT
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # $missing is a list of package names, to be split into words.
    if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } \
        >"$log" 2>&1; then
        echo "the installation failed; its last lines:" >&2
        tail -n 20 "$log" >&2
    fi
    rm -f "$log"
    missing=$(missing_packages)
fi

if [ -n "$missing" ]; then
    for package in $missing; do
        echo "missing: $package (Debian package of that name)" >&2
    done
    echo "tests that need them are skipped; with STEADFEAST_REQUIRE_SERVICES=1 they fail" >&2
    [ "$install" = yes ] && [ "${STEADFEAST_REQUIRE_SERVICES:-}" != 1 ]
    exit
fi
echo "redis-server, prometheus, promtool, prometheus-alertmanager, chromium, npm, java: all here"
