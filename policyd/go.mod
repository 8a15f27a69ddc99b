module github.com/testudo-ipsec/testudo/policyd

go 1.26.0

require (
	github.com/testudo-ipsec/testudo/ipsec v0.0.0
)

replace (
	github.com/testudo-ipsec/testudo/ipsec => ../ipsec
)
