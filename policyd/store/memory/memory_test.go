package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/testudo-ipsec/testudo/policyd/store/memory"
	"github.com/testudo-ipsec/testudo/policyd/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Opened {
		s := memory.New()
		return storetest.Opened{Store: s, Compact: s.Compact}
	})
}
