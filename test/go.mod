module github.com/testudo-ipsec/testudo/test

go 1.26.0

require github.com/testudo-ipsec/testudo/ipsec v0.0.0

require golang.org/x/sys v0.49.0

replace (
	github.com/testudo-ipsec/testudo/dataplane => ../dataplane
	github.com/testudo-ipsec/testudo/ipsec => ../ipsec
	github.com/testudo-ipsec/testudo/keymgr => ../keymgr
	github.com/testudo-ipsec/testudo/policyd => ../policyd
	github.com/testudo-ipsec/testudo/proto => ../proto
	github.com/testudo-ipsec/testudo/services => ../services
)
