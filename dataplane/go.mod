module github.com/testudo-ipsec/testudo/dataplane

go 1.26.0

require (
	github.com/testudo-ipsec/testudo/ipsec v0.0.0
	golang.org/x/crypto v0.43.0
)

require golang.org/x/sys v0.49.0 // indirect

replace github.com/testudo-ipsec/testudo/ipsec => ../ipsec
