package cred

import "strings"

// The schemes that a reference may have.
const (
	SchemeFile  = "file"
	SchemeVault = "vault"
)

// DefaultField is the field of a Vault secret that holds the key.
const DefaultField = "psk"

const maxRef = 512

// Ref is a parsed reference:
//
//	file:web-db.psk
//	vault:secret/testudo/psk/web-db          mount "secret", field "psk"
//	vault:secret/testudo/psk/web-db#previous
type Ref struct {
	Scheme string
	Path   string
	Field  string // empty unless the reference has a #field
}

// ParseRef reads a reference. It refuses whatever could leave the folder or the
// mount it names, or be read differently by a URL parser: empty, "." and ".."
// segments, a leading slash, and every character outside A-Z a-z 0-9 and
// - _ . ~ @ + = , : (and / between segments).
func ParseRef(ref string) (Ref, error) {
	// Until the scheme is known this may be a secret that somebody wrote where
	// its reference belongs: it is not quoted.
	scheme, rest, _ := strings.Cut(ref, ":")
	if scheme != SchemeFile && scheme != SchemeVault {
		return Ref{}, Errorf(Invalid, "", "this is not a reference (and is not shown, it may be a secret): want file:web-db.psk or vault:secret/testudo/psk/web-db")
	}
	if len(ref) > maxRef {
		return Ref{}, Errorf(Invalid, scheme+":…", "the reference has %d characters, want at most %d", len(ref), maxRef)
	}
	path, field, hasField := strings.Cut(rest, "#")
	if hasField && !plain(field) {
		return Ref{}, Errorf(Invalid, ref, "what follows # must be the name of a field")
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "", segment == ".", segment == "..":
			return Ref{}, Errorf(Invalid, ref, "the path must be relative, without empty, . or .. segments")
		case !plain(segment):
			return Ref{}, Errorf(Invalid, ref, "the path has a character outside A-Z a-z 0-9 - _ . ~ @ + = , : /")
		}
	}
	if scheme == SchemeFile && hasField {
		return Ref{}, Errorf(Invalid, ref, "a file has no fields: drop %q", "#"+field)
	}
	return Ref{Scheme: scheme, Path: path, Field: field}, nil
}

func plain(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c-'a' < 26 || c-'A' < 26 || c-'0' < 10 {
			continue
		}
		if !strings.ContainsRune("-_.~@+=,:", rune(c)) {
			return false
		}
	}
	return true
}
