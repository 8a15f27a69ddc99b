module github.com/testudo-ipsec/testudo/ipsec

go 1.26.0
