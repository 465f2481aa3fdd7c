import org.gradle.api.publish.maven.MavenPom

/** What a repository of packages wants to know. */
fun MavenPom.describe(title: String, text: String) {
    name.set(title)
    description.set(text)
    licenses {
        license {
            name.set("Apache-2.0")
            url.set("https://www.apache.org/licenses/LICENSE-2.0")
        }
    }
}
