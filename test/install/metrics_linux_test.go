package install

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	. "github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const metricsPort = "8443"

// helmMetrics reads the metrics of every pod, as somebody who may and as somebody
// who may not.
func helmMetrics(u user) {
	// The controller remembers for a while whom it has refused, so there are two accounts.
	u.kubectl("--namespace="+u.name, "create", "serviceaccount", "stranger")
	token, strangers := u.token("default"), u.token("stranger")
	anybody := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	for _, pod := range u.pods("controller") {
		u.Expect(u.scrape(anybody, pod, "")).To(HavePrefix("401"), "nobody")
		u.Expect(u.scrape(anybody, pod, strangers)).To(HavePrefix("403"), "an account without the right")
	}
	u.helm("upgrade", "berth", u.chart(), "--set=metrics.readers[0].namespace="+u.name+",metrics.readers[0].name=default")
	u.rollout()
	for _, pod := range u.pods("controller") {
		u.Eventually(func() string { return u.scrape(anybody, pod, token) }).Should(And(HavePrefix("200"), ContainSubstring("berth_build_info")))
	}
	prometheus := u.prometheus()
	for _, pod := range u.pods("agent") {
		u.Expect(u.scrape(anybody, pod, token)).To(ContainSubstring("tls: "), "agents can't ask whose token it is")
		u.Expect(u.scrape(prometheus, pod, "")).To(And(HavePrefix("200"), ContainSubstring("berth_pool_")))
	}
}

// prometheus is a client with what the controller issues for Prometheus.
func (u user) prometheus() *http.Client {
	u.t.Helper()
	data := u.certificates()["berth-metrics-tls"]
	certificate, err := tls.X509KeyPair(data["tls.crt"], data["tls.key"])
	u.Expect(err).NotTo(HaveOccurred())
	authorities := x509.NewCertPool()
	u.Expect(authorities.AppendCertsFromPEM(data["ca.crt"])).To(BeTrue())
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "agent.berth.storage", RootCAs: authorities, Certificates: []tls.Certificate{certificate},
	}}}
}

// scrape returns the status and the text of a pod's metrics, or why there is none.
func (u user) scrape(client *http.Client, pod corev1.Pod, token string) string {
	u.t.Helper()
	request, err := http.NewRequestWithContext(u.t.Context(), http.MethodGet, "https://"+net.JoinHostPort(pod.Status.PodIP, metricsPort)+"/metrics", nil)
	u.Expect(err).NotTo(HaveOccurred())
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return fmt.Sprint(response.StatusCode, " ", string(text), err)
}

func (u user) token(account string) string {
	u.t.Helper()
	made, err := u.api().CoreV1().ServiceAccounts(u.name).CreateToken(u.t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	u.Expect(err).NotTo(HaveOccurred())
	return made.Status.Token
}

// pods returns Berth's that are there to stay.
func (u user) pods(component string) []corev1.Pod {
	u.t.Helper()
	list, err := u.api().CoreV1().Pods(namespace).List(u.t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component})
	u.Expect(err).NotTo(HaveOccurred())
	var all []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			all = append(all, pod)
		}
	}
	u.Expect(all).NotTo(BeEmpty())
	return all
}
