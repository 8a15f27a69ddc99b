module github.com/testudo-ipsec/testudo/test

go 1.26.0

require github.com/testudo-ipsec/testudo/ipsec v0.0.0

require (
	github.com/testudo-ipsec/testudo/policyd v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.49.0
)

require go.yaml.in/yaml/v3 v3.0.6 // indirect

replace (
	github.com/testudo-ipsec/testudo/dataplane => ../dataplane
	github.com/testudo-ipsec/testudo/ipsec => ../ipsec
	github.com/testudo-ipsec/testudo/keymgr => ../keymgr
	github.com/testudo-ipsec/testudo/policyd => ../policyd
	github.com/testudo-ipsec/testudo/proto => ../proto
	github.com/testudo-ipsec/testudo/services => ../services
)
