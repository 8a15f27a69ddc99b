module github.com/testudo-ipsec/testudo/proto

go 1.26.0
