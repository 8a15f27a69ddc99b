module github.com/testudo-ipsec/testudo/test

go 1.26.0

require github.com/testudo-ipsec/testudo/ipsec v0.0.0

require (
	github.com/testudo-ipsec/testudo/keymgr v0.0.0
	github.com/testudo-ipsec/testudo/policyd v0.0.0
	github.com/testudo-ipsec/testudo/proto v0.0.0
	golang.org/x/sys v0.49.0
	google.golang.org/protobuf v1.36.12
)

require (
	filippo.io/bigmod v0.1.0 // indirect
	filippo.io/edwards25519 v1.2.0 // indirect
	github.com/cloudflare/circl v1.6.5 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0 // indirect
)

replace (
	github.com/testudo-ipsec/testudo/dataplane => ../dataplane
	github.com/testudo-ipsec/testudo/ipsec => ../ipsec
	github.com/testudo-ipsec/testudo/keymgr => ../keymgr
	github.com/testudo-ipsec/testudo/policyd => ../policyd
	github.com/testudo-ipsec/testudo/proto => ../proto
	github.com/testudo-ipsec/testudo/services => ../services
)
