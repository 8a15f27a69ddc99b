module github.com/testudo-ipsec/testudo/keymgr

go 1.26.0

require github.com/testudo-ipsec/testudo/ipsec v0.0.0

require (
	golang.org/x/crypto v0.58.0
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/testudo-ipsec/testudo/ipsec => ../ipsec
