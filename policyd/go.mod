module github.com/testudo-ipsec/testudo/policyd

go 1.26.0

require (
	github.com/testudo-ipsec/testudo/ipsec v0.0.0
	go.yaml.in/yaml/v3 v3.0.6
)

replace github.com/testudo-ipsec/testudo/ipsec => ../ipsec
