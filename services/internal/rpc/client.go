package rpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

// Dial makes a client connection to "unix:///path" or "host:port"; the far end
// must carry the role. It connects in the background and reconnects with
// back-off and jitter.
func Dial(address string, want Role, files config.TLS, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	creds := credentials.TransportCredentials(localCredentials{})
	target := address
	if !config.IsUnix(address) {
		id, err := newIdentity(files)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(id.clientConfig(want))
		target = "dns:///" + address
	}
	return grpc.NewClient(target, append(opts,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: false}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
	)...)
}
