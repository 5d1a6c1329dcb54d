package install

import (
	"testing"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestHelm is the life of a release, each part on what the one before has left.
func TestHelm(t *testing.T) {
	u := newUser(t, "helm-user")
	for _, step := range []struct {
		name string
		run  func(u user)
	}{
		{"FirstVolumeSoonAfterInstall", helmInstall},
		{"Test", func(u user) {
			u.Expect(u.helm("test", "berth", "--timeout=90s")).To(ContainSubstring("Phase:          Succeeded"))
		}},
		{"Expansion", expansion},
		{"GracefulEndOfTheLeader", gracefulEnd},
		{"KilledLeader", killedLeader},
		{"MetricsForThoseWhoMayReadThem", helmMetrics},
		{"WithoutCapacity", helmWithoutCapacity},
		{"UpgradeWithVolumesInUse", helmUpgrade},
		{"UninstallLeavesData", helmUninstall},
		{"ReinstallFinishesWhatWasLeft", helmReinstall},
	} {
		ok := t.Run(step.name, func(t *testing.T) {
			step.run(user{WithT: NewWithT(t), t: t, kubeconfig: u.kubeconfig, root: u.root, name: u.name})
		})
		if !ok {
			t.FailNow()
		}
	}
}

// helmInstall is one command line from nothing to a volume that a pod writes to.
func helmInstall(u user) {
	began := time.Now()
	notes := u.helm("install", "berth", u.chart(), "--create-namespace")
	u.apply(claim("first", "berth-hostpath") + writer("first"))
	v := u.expectBound("first")
	took := time.Since(began)
	u.t.Logf("from nothing to the first Bound claim: %.1f s", took.Seconds())
	u.Expect(took).To(BeNumerically("<", time.Minute))
	u.Expect(notes).To(ContainSubstring("storageClassName: berth-hostpath"))
	u.expectWriting("first", v)
	u.rollout()
}

func expansion(u user) {
	u.kubectl("--namespace="+u.name, "patch", "pvc", "first", "--patch", `{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}`)
	u.Eventually(func() (string, error) {
		c, err := u.api().CoreV1().PersistentVolumeClaims(u.name).Get(u.t.Context(), "first", metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return c.Status.Capacity.Storage().String(), nil
	}).Should(Equal("2Mi"))
}

// bindingTime returns how long it takes from began until a new claim is Bound.
func (u user) bindingTime(name string, began time.Time) time.Duration {
	u.t.Helper()
	u.apply(claim(name, "immediate"))
	u.expectBound(name)
	return time.Since(began)
}

func gracefulEnd(u user) {
	u.apply(immediate)
	u.t.Logf("a claim with nothing in its way: %.1f s", u.bindingTime("undisturbed", time.Now()).Seconds())
	leader := u.leader()
	began := time.Now()
	u.Expect(u.api().CoreV1().Pods(namespace).Delete(u.t.Context(), leader.Name, metav1.DeleteOptions{})).To(Succeed())
	took := u.bindingTime("after-graceful", began)
	u.t.Logf("from the leader's deletion to a new claim's bind: %.1f s", took.Seconds())
	u.Expect(took).To(BeNumerically("<", 3*time.Second))
	u.Expect(u.leader().Name).NotTo(Equal(leader.Name))
	u.rollout()
}

func killedLeader(u user) {
	const lease = 15 * time.Second
	leader := u.leader()
	node, process := u.process(leader)
	began := time.Now()
	output, err := node.Command(u.t.Context(), "kill", "-9", process).CombinedOutput()
	u.Expect(err).NotTo(HaveOccurred(), "%s", output)
	took := u.bindingTime("after-kill", began)
	u.t.Logf("from the leader's kill -9 to a new claim's bind: %.1f s; the next leader is %s, after %s", took.Seconds(), u.leader().Name, leader.Name)
	u.Expect(took).To(BeNumerically("<", lease+time.Second))
	u.rollout()
}

// helmWithoutCapacity turns it off; the upgrade after that turns it on again.
func helmWithoutCapacity(u user) {
	u.helm("upgrade", "berth", u.chart(), "--set=capacity.enabled=false")
	u.Eventually(func() (string, error) {
		return shared.Kubectl(u.t.Context(), nil, "--namespace="+namespace, "get", "-o", "name", "csidrivers,csistoragecapacities")
	}).Should(BeEmpty())
	u.rollout()
}

// helmUpgrade changes everything that makes new pods, and asks for what can't be
// changed in a class.
func helmUpgrade(u user) {
	v := u.expectBound("first")
	before := u.certificates()
	const changed = `storageClasses=[{"name":"berth-hostpath","driver":"hostpath","volumeBindingMode":"WaitForFirstConsumer","allowVolumeExpansion":true,"parameters":{"onDelete":"archive"}}]`
	args := []string{"upgrade", "berth", u.chart(), "--set=agent.logLevel=debug,controller.logLevel=debug,agent.poolOvercommit=2", "--set-json=" + changed, "--timeout=120s", "--wait"}
	u.Expect(u.helm(args...)).To(ContainSubstring("StorageClass berth-hostpath was left as it is"))
	u.rollout()
	u.expectWriting("first", v)
	u.Expect(u.certificates()).To(Equal(before), "certificates after an upgrade")
	u.apply(claim("second", "berth-hostpath") + writer("second"))
	u.expectWriting("second", u.expectBound("second"))

	u.kubectl("delete", "storageclass", "berth-hostpath")
	u.Expect(u.helm(args...)).NotTo(ContainSubstring("was left as it is"))
	class, err := u.api().StorageV1().StorageClasses().Get(u.t.Context(), "berth-hostpath", metav1.GetOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	u.Expect(class.Parameters).To(HaveKeyWithValue("onDelete", "archive"))
	u.expectWriting("first", v)
}

// certificates returns what is in the Secrets.
func (u user) certificates() map[string]map[string][]byte {
	u.t.Helper()
	found := map[string]map[string][]byte{}
	for _, name := range []string{"berth-ca", "berth-agent-tls", "berth-controller-tls", "berth-metrics-tls"} {
		secret, err := u.api().CoreV1().Secrets(namespace).Get(u.t.Context(), name, metav1.GetOptions{})
		u.Expect(err).NotTo(HaveOccurred())
		u.Expect(secret.Data).NotTo(BeEmpty(), "Secret %s", name)
		found[name] = secret.Data
	}
	return found
}

func helmUninstall(u user) {
	first, second := u.expectBound("first"), u.expectBound("second")
	helmReturned = withoutBerth(func() { u.helm("uninstall", "berth", "--wait", "--timeout=60s") })
	u.expectNothingOfBerth("app.kubernetes.io/instance=berth")
	u.expectWriting("first", first)
	// Nobody is there to remove the volume.
	u.kubectl("--namespace="+u.name, "delete", "pod/second", "persistentvolumeclaim/second")
	u.Eventually(func() (corev1.PersistentVolumePhase, error) {
		v, err := u.api().CoreV1().PersistentVolumes().Get(u.t.Context(), second.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return v.Status.Phase, nil
	}).Should(Equal(corev1.VolumeReleased))
	u.Expect(directory(second)).To(BeADirectory())
}

// expectNothingOfBerth waits until all that an installation makes is gone.
func (u user) expectNothingOfBerth(selector string) {
	u.t.Helper()
	u.Eventually(func() (string, error) {
		return shared.Kubectl(u.t.Context(), nil, "--namespace="+namespace, "get", "--ignore-not-found", "-o", "name", "--selector="+selector,
			"deployments,daemonsets,pods,services,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,"+
				"clusterroles,clusterrolebindings,storageclasses,csidrivers,validatingadmissionpolicies,validatingadmissionpolicybindings")
	}).Should(BeEmpty())
	u.Eventually(func() (string, error) {
		return shared.Kubectl(u.t.Context(), nil, "--namespace="+namespace, "get", "-o", "name", "csistoragecapacities")
	}).Should(BeEmpty())
	_, err := u.api().StorageV1().CSIDrivers().Get(u.t.Context(), "hostpath.berth.storage", metav1.GetOptions{})
	u.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "the CSIDriver object is gone: %v", err)
}

// helmReturned says that the release is there again.
var helmReturned func()

func helmReinstall(u user) {
	helmReturned()
	first := u.expectBound("first")
	var released []corev1.PersistentVolume
	list, err := u.api().CoreV1().PersistentVolumes().List(u.t.Context(), metav1.ListOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	for _, v := range list.Items {
		if v.Status.Phase == corev1.VolumeReleased {
			released = append(released, v)
		}
	}
	u.Expect(released).NotTo(BeEmpty())
	began := time.Now()
	u.helm("install", "berth", u.chart(), "--wait", "--timeout=90s")
	u.t.Logf("installed again after %.1f s", time.Since(began).Seconds())
	for i := range released {
		u.expectGone(&released[i])
	}
	u.t.Logf("released volumes are gone after %.1f s", time.Since(began).Seconds())
	u.expectWriting("first", first)
	u.kubectl("delete", "namespace", u.name)
	u.t.Logf("claims are gone after %.1f s", time.Since(began).Seconds())
	u.expectGone(first)
	withoutBerth(func() {
		u.helm("uninstall", "berth", "--wait", "--timeout=60s")
		u.kubectl("delete", "namespace", namespace)
	})()
	u.t.Logf("all is gone after %.1f s", time.Since(began).Seconds())
}
