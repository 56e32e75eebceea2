#!/bin/sh
# A certificate of your own authority for the front door, in infra/front-door/tls. Run it again for a new one.
#
#   infra/certificate.sh 10.0.0.5 farm.example.lan
#
# makes ca.pem (give it to clients and workers: FARM_CA_FILE), ca.key (keep it here) and 10.0.0.5.pem (FRONT_DOOR_CERTIFICATE).
set -eu
test $# -gt 0 || { echo "usage: $0 NAME-OR-ADDRESS…" >&2; exit 2; }
folder=${TLS_FOLDER:-$(dirname "$0")/front-door/tls}
names=
for name in "$@"; do
  case $name in
    *[!0-9A-Za-z.:-]*) echo "$0: $name is no name or address of a machine" >&2; exit 2 ;;
    *[!0-9.]*) case $name in *:*) kind=IP ;; *) kind=DNS ;; esac ;;
    *) kind=IP ;;
  esac
  names=$names${names:+,}$kind:$name
done
umask 077
if [ ! -e "$folder/ca.key" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=render farm authority" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$folder/ca.key" -out "$folder/ca.pem" 2>/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "$names" > "$work/extensions"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$work/key" -out "$work/request" 2>/dev/null
openssl x509 -req -in "$work/request" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -CAcreateserial -days 825 \
  -extfile "$work/extensions" -out "$work/certificate" 2>/dev/null
cat "$work/certificate" "$work/key" > "$folder/$1.pem"
# HAProxy's container reads it as a user of its own, and so does a worker with the authority's
chmod 755 "$folder"
chmod 644 "$folder/ca.pem" "$folder/$1.pem"
echo "$folder/$1.pem for $names, by the authority $folder/ca.pem"
