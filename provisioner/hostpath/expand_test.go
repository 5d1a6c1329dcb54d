package hostpath_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-storage/berth/internal/quotatest"
	"github.com/berth-storage/berth/provisioner/hostpath"
)

func TestExpansionSaysWhatIsEnforcedNow(t *testing.T) {
	b := newBench(t)
	must(t, b.driver.Close())
	quota := quotatest.New()
	b.quota = quota
	b.driver = b.open()
	volume := b.provision(askFor())
	if got := volume.Annotations[hostpath.AnnQuota]; got != "enforced" {
		t.Fatalf("the volume was made with quota %q", got)
	}
	for _, step := range []struct{ off, size, note, state string }{
		{"", "2Gi", "the filesystem enforces it", "enforced"},
		{"switched off", "3Gi", "the size is not enforced: volumes of a pool have its filesystem's space in common", "none: switched off"},
		{"", "4Gi", "the filesystem enforces it", "enforced"},
	} {
		quota.SwitchOff(step.off)
		size := resource.MustParse(step.size)
		grown, err := b.driver.Expand(b.ctx, volume, size.Value())
		must(t, err)
		if got := grown.Annotations[hostpath.AnnQuota]; grown.Note != step.note || got != step.state {
			t.Errorf("%s: %q, annotation %q, want %q and %q", step.size, grown.Note, got, step.note, step.state)
		}
	}
}

// TestExpansionSaysHowMuchThereIs asks for less than the volume has, as a crash
// before that was written down leaves it.
func TestExpansionSaysHowMuchThereIs(t *testing.T) {
	b := newBench(t)
	volume := b.provision(askFor())
	for _, step := range []struct{ ask, has string }{{"4Gi", "4Gi"}, {"2Gi", "4Gi"}, {"5Gi", "5Gi"}} {
		size, want := resource.MustParse(step.ask), resource.MustParse(step.has)
		grown, err := b.driver.Expand(b.ctx, volume, size.Value())
		must(t, err)
		if grown.Size != want.Value() {
			t.Errorf("after %s was asked for the volume has %d, want %s", step.ask, grown.Size, step.has)
		}
	}
}
