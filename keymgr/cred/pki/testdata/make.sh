#!/bin/bash
# Makes the vectors beside it with openssl and strongSwan's pki; private keys are
# not kept. The tests judge them on 1 January 2030.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
rm -rf "$here/openssl" "$here/strongswan"
mkdir -p "$here/openssl" "$here/strongswan" new
exec 3>&2 2>log
trap 'cat log >&3' ERR

cat >ca.cnf <<'CNF'
[ca]
default_ca = one
[one]
new_certs_dir = new
database = index.txt
unique_subject = no
rand_serial = yes
policy = any
crlnumber = crlnumber
crl_extensions = crl
default_md = sha256
default_days = 3650
copy_extensions = none
[crl]
authorityKeyIdentifier = keyid
[any]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = optional
[req]
distinguished_name = none
[none]
CNF
touch index.txt
echo 01 >crlnumber

readonly from=20260101000000Z to=20360101000000Z
key() { # NAME ALGORITHM
	case $2 in
	rsa*) openssl genrsa -out "$1.key" "${2#rsa}" ;;
	ed25519) openssl genpkey -algorithm ed25519 -out "$1.key" ;;
	*) openssl ecparam -name "$2" -genkey -noout -out "$1.key" ;;
	esac
}
# issue NAME ALGORITHM ISSUER SUBJECT EXTENSIONS [MORE FOR openssl ca...]
issue() {
	local name=$1 algorithm=$2 issuer=$3 subject=$4 extensions=$5
	shift 5
	key "$name" "$algorithm"
	openssl req -new -config ca.cnf -key "$name.key" -subj "$subject" -out "$name.csr"
	printf '%b\n' "$extensions" >"$name.ext"
	local by=(-cert "$issuer.pem" -keyfile "$issuer.key")
	[ "$issuer" != self ] || by=(-selfsign -keyfile "$name.key")
	openssl ca -batch -notext -config ca.cnf -in "$name.csr" -out "$name.pem" "${by[@]}" \
		-startdate $from -enddate $to -extfile "$name.ext" "$@"
}
authority='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign'
web='subjectAltName=DNS:web-1.fleet.example,email:ops@fleet.example,IP:10.0.1.11,IP:2001:db8::11'
leaf='/C=DE/O=Fleet/OU=Web/CN=web-1'
sign='keyUsage=critical,digitalSignature'
chain() { # NAME CERTIFICATES...: leaf first, into the vector NAME
	local name=$1
	shift
	cat "${@/%/.pem}" >"$here/openssl/$name.pem"
}

issue ca prime256v1 self '/O=Fleet/CN=Fleet CA' "$authority"
chain ca ca
issue other prime256v1 self '/O=Fleet/CN=Fleet CA' "$authority" # the same name, another key
chain other-ca other

for kind in rsa2048 rsa3072 prime256v1 secp384r1 secp521r1 ed25519; do
	issue "good-$kind" $kind ca "$leaf" "$web\n$sign"
	chain "good-$kind" "good-$kind"
done
issue good-pss rsa2048 ca "$leaf" "$web\n$sign"
chain good-pss good-pss
issue pss-ca rsa2048 self '/O=Fleet/CN=PSS CA' "$authority"
chain pss-ca pss-ca
issue good-signed-pss prime256v1 pss-ca "$leaf" "$web\n$sign" -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1
chain good-signed-pss good-signed-pss
issue ed-ca ed25519 self '/O=Fleet/CN=Ed25519 CA' "$authority"
chain ed-ca ed-ca
issue good-signed-ed25519 ed25519 ed-ca "$leaf" "$web\n$sign" -md null
chain good-signed-ed25519 good-signed-ed25519

# Usages.
for eku in 1.3.6.1.5.5.7.3.17 serverAuth clientAuth anyExtendedKeyUsage; do
	issue "good-eku-$eku" prime256v1 ca "$leaf" "$web\n$sign\nextendedKeyUsage=$eku"
	chain "good-eku-$eku" "good-eku-$eku"
done
for eku in emailProtection codeSigning ipsecEndSystem OCSPSigning; do
	issue "eku-$eku" prime256v1 ca "$leaf" "$web\n$sign\nextendedKeyUsage=$eku"
	chain "eku-$eku" "eku-$eku"
done
issue good-nonrepudiation prime256v1 ca "$leaf" "$web\nkeyUsage=nonRepudiation"
chain good-nonrepudiation good-nonrepudiation
issue good-no-usage prime256v1 ca "$leaf" "$web"
chain good-no-usage good-no-usage
issue usage-encipherment rsa2048 ca "$leaf" "$web\nkeyUsage=critical,keyEncipherment"
chain usage-encipherment usage-encipherment
issue usage-keycertsign prime256v1 ca "$leaf" "$web\n$authority"
chain usage-keycertsign usage-keycertsign
issue critical-extension prime256v1 ca "$leaf" "$web\n$sign\n1.2.3.4.5=critical,ASN1:NULL"
chain critical-extension critical-extension

# Time.
issue expired prime256v1 ca "$leaf" "$web\n$sign" -enddate 20270101000000Z
chain expired expired
issue future prime256v1 ca "$leaf" "$web\n$sign" -startdate 20340101000000Z
chain future future

# Strength.
issue sha1 rsa2048 ca "$leaf" "$web\n$sign" -md sha1
chain sha1 sha1
issue rsa1024 rsa1024 ca "$leaf" "$web\n$sign"
chain rsa1024 rsa1024
issue p224 secp224r1 ca "$leaf" "$web\n$sign"
chain p224 p224
issue weak-ca rsa1024 self '/O=Fleet/CN=Weak CA' "$authority"
chain weak-ca weak-ca
issue below-weak-ca prime256v1 weak-ca "$leaf" "$web\n$sign"
chain below-weak-ca below-weak-ca

# Chains.
issue inter prime256v1 ca '/O=Fleet/CN=Site CA' "$authority"
issue good-intermediate prime256v1 inter "$leaf" "$web\n$sign"
chain good-intermediate good-intermediate inter
chain good-with-root good-intermediate inter ca
chain missing-intermediate good-intermediate
issue inter-sha1 rsa2048 ca '/O=Fleet/CN=SHA-1 CA' "$authority" -md sha1
issue below-sha1 prime256v1 inter-sha1 "$leaf" "$web\n$sign"
chain below-sha1 below-sha1 inter-sha1
issue inter-1024 rsa1024 ca '/O=Fleet/CN=Short CA' "$authority"
issue below-1024 prime256v1 inter-1024 "$leaf" "$web\n$sign"
chain below-1024 below-1024 inter-1024
issue inter-expired prime256v1 ca '/O=Fleet/CN=Old CA' "$authority" -enddate 20270101000000Z
issue below-expired prime256v1 inter-expired "$leaf" "$web\n$sign"
chain below-expired below-expired inter-expired
issue inter-email prime256v1 ca '/O=Fleet/CN=Mail CA' "$authority\nextendedKeyUsage=emailProtection"
issue below-email prime256v1 inter-email "$leaf" "$web\n$sign"
chain below-email below-email inter-email
issue below-leaf prime256v1 good-prime256v1 "$leaf" "$web\n$sign"
chain below-leaf below-leaf good-prime256v1
issue inter-short prime256v1 ca '/O=Fleet/CN=Last CA' 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign'
issue inter-under prime256v1 inter-short '/O=Fleet/CN=One more CA' "$authority"
issue path-length prime256v1 inter-under "$leaf" "$web\n$sign"
chain path-length path-length inter-under inter-short
issue inter-names prime256v1 ca '/O=Fleet/CN=Names CA' "$authority\nnameConstraints=critical,permitted;DNS:db.fleet.example,permitted;IP:10.0.2.0/255.255.255.0,permitted;email:fleet.example"
issue name-constraint prime256v1 inter-names "$leaf" 'subjectAltName=DNS:web-1.fleet.example\n'"$sign"
chain name-constraint name-constraint inter-names
issue address-constraint prime256v1 inter-names "$leaf" 'subjectAltName=IP:10.0.1.11\n'"$sign"
chain address-constraint address-constraint inter-names
issue good-constraint prime256v1 inter-names "$leaf" 'subjectAltName=DNS:web-1.DB.fleet.example,IP:10.0.2.11\n'"$sign"
chain good-constraint good-constraint inter-names
issue inter-dirname prime256v1 ca '/O=Fleet/CN=Directory CA' "$authority\nnameConstraints=critical,permitted;dirName:dir\n[dir]\nO=Fleet"
issue directory-constraint prime256v1 inter-dirname "$leaf" "$web\n$sign"
chain directory-constraint directory-constraint inter-dirname
issue self-signed prime256v1 self "$leaf" "$web\n$sign"
chain self-signed self-signed
issue stranger prime256v1 other "$leaf" "$web\n$sign"
chain same-name-other-key stranger

# Identities.
issue name-in-cn prime256v1 ca '/O=Fleet/CN=web-1.fleet.example' "subjectAltName=DNS:other.fleet.example\n$sign"
chain name-in-cn name-in-cn
issue no-names prime256v1 ca '/O=Fleet/CN=web-1.fleet.example' "$sign"
chain no-names no-names
issue wildcard prime256v1 ca "$leaf" "subjectAltName=DNS:*.fleet.example\n$sign"
chain wildcard wildcard
issue look-alike prime256v1 ca "$leaf" "subjectAltName=DNS:web-l.fleet.example,DNS:web-1.fleet.example.evil.example,DNS:xweb-1.fleet.example\n$sign"
chain look-alike look-alike

# Revocation.
urls='crlDistributionPoints=URI:http://pki.fleet.example/ca.crl\nauthorityInfoAccess=OCSP;URI:http://ocsp.fleet.example/'
issue with-urls prime256v1 ca "$leaf" "$web\n$sign\n$urls"
chain with-urls with-urls
issue revoked prime256v1 ca "$leaf" "$web\n$sign\n$urls"
chain revoked revoked
openssl ca -config ca.cnf -gencrl -cert ca.pem -keyfile ca.key -crldays 3000 -out empty.crl.pem
openssl ca -config ca.cnf -cert ca.pem -keyfile ca.key -revoke revoked.pem -crl_reason keyCompromise
openssl ca -config ca.cnf -gencrl -cert ca.pem -keyfile ca.key -crldays 3000 -out ca.crl.pem
openssl ca -config ca.cnf -gencrl -cert ca.pem -keyfile ca.key -crldays 10 -out ended.crl.pem
openssl ca -config ca.cnf -gencrl -cert other.pem -keyfile other.key -crldays 3000 -out other.crl.pem
openssl ca -config ca.cnf -gencrl -cert ca.pem -keyfile ca.key -crldays 3000 -md sha1 -out sha1.crl.pem
for crl in empty ca ended other sha1; do openssl crl -in $crl.crl.pem -outform DER -out "$here/openssl/$crl.crl"; done

issue responder prime256v1 ca '/O=Fleet/CN=OCSP responder' "$sign\nextendedKeyUsage=OCSPSigning"
issue not-responder prime256v1 ca '/O=Fleet/CN=No responder' "$sign"
issue old-responder prime256v1 ca '/O=Fleet/CN=Old responder' "$sign\nextendedKeyUsage=OCSPSigning" -enddate 20270101000000Z
issue other-responder prime256v1 other '/O=Fleet/CN=Foreign responder' "$sign\nextendedKeyUsage=OCSPSigning"
answer() { # FILE CERTIFICATE SIGNER DAYS [MORE...]
	local file=$1 about=$2 signer=$3 days=$4
	shift 4
	openssl ocsp -issuer ca.pem -cert "$about.pem" -reqout req.der
	openssl ocsp -index index.txt -CA ca.pem -rsigner "$signer.pem" -rkey "$signer.key" -reqin req.der -respout "$here/openssl/$file.ocsp" -ndays "$days" "$@"
}
answer good-by-ca with-urls ca 3000
answer good-by-responder with-urls responder 3000
answer revoked revoked responder 3000
answer by-not-responder with-urls not-responder 3000
answer by-old-responder with-urls old-responder 3000
answer by-other-responder with-urls other-responder 3000
answer ended with-urls responder 10
answer sha1 with-urls responder 3000 -rmd sha1
# The same serial number of the authority with the same name.
openssl ocsp -issuer other.pem -cert with-urls.pem -reqout req.der
openssl ocsp -index index.txt -CA other.pem -rsigner responder.pem -rkey responder.key -reqin req.der -respout "$here/openssl/other-authority.ocsp" -ndays 3000

# strongSwan's own programs.
out=$here/strongswan
dates=(--dateform '%Y-%m-%d' --not-before 2026-01-01 --not-after 2036-01-01)
pki --gen --type ecdsa --size 256 --outform pem >ss-ca.key
pki --self --ca --in ss-ca.key --type ecdsa --dn 'C=DE, O=Fleet, CN=strongSwan CA' --outform pem "${dates[@]}" >"$out/ca.pem"
pki --gen --type ecdsa --size 256 --outform pem >ss-inter.key
pki --pub --in ss-inter.key --type ecdsa | pki --issue --ca --pathlen 0 --cacert "$out/ca.pem" --cakey ss-ca.key --dn 'C=DE, O=Fleet, CN=strongSwan site CA' --outform pem "${dates[@]}" >ss-inter.pem
swan() { # NAME KIND SIZE [MORE FOR pki --issue...]
	local name=$1 kind=$2 size=(--size "$3")
	shift 3
	[ "$kind" != ed25519 ] || size=()
	pki --gen --type "$kind" "${size[@]}" --outform pem >ss.key
	pki --pub --in ss.key --type priv >ss.pub
	pki --issue --in ss.pub --cacert "$out/ca.pem" --cakey ss-ca.key --dn 'C=DE, O=Fleet, OU=Web, CN=web-1' \
		--san web-1.fleet.example --san ops@fleet.example --san 10.0.1.11 --outform pem "${dates[@]}" "$@" >"$out/$name.pem"
}
for kind in 'rsa 2048' 'ecdsa 256' 'ecdsa 384' 'ecdsa 521' 'ed25519 0'; do
	# shellcheck disable=SC2086 # two words
	swan "good-${kind/ /-}" $kind
done
swan good-ike-usage ecdsa 256 --flag serverAuth --flag ikeIntermediate
swan expired ecdsa 256 --not-after 2027-01-01
swan future ecdsa 256 --not-before 2034-01-01
swan usage-ocsp ecdsa 256 --flag ocspSigning
swan sha1 ecdsa 256 --digest sha1
swan rsa-1024 rsa 1024
swan revoked ecdsa 256
pki --gen --type ecdsa --size 256 --outform pem >ss.key
pki --pub --in ss.key --type priv | pki --issue --cacert ss-inter.pem --cakey ss-inter.key --dn 'C=DE, O=Fleet, OU=Web, CN=web-1' --san web-1.fleet.example --outform pem "${dates[@]}" >ss-leaf.pem
cat ss-leaf.pem ss-inter.pem >"$out/good-intermediate.pem"
pki --signcrl --cacert "$out/ca.pem" --cakey ss-ca.key --lifetime 3000 --reason key-compromise --cert "$out/revoked.pem" >"$out/ca.crl"
